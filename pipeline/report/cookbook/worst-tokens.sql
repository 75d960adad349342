-- The twenty tokens that the student was surest of and the teacher least: the largest gaps, in nats.
select
    round, rollout_id, pos, token, behaviour_logprob as student, sampled_logprob as teacher,
    behaviour_logprob - sampled_logprob as gap
from tokens
where sampled_logprob is not null
order by gap desc, rollout_id, pos
limit 20;
