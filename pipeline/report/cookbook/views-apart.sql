-- What each view thinks of the student's tokens beside what the teacher's view thinks, in nats, by round.
select
    other.round, other.view, count(*) as tokens, avg(other.logprob - teacher.logprob) as mean_difference,
    avg(abs(other.logprob - teacher.logprob)) as mean_distance
from (
    select rollout_id, round, view, unnest(range(len(sampled_logprobs))) as pos, unnest(sampled_logprobs) as logprob
    from all_scores where view <> 'teacher'
) as other
join (
    select rollout_id, round, unnest(range(len(sampled_logprobs))) as pos, unnest(sampled_logprobs) as logprob
    from all_scores where view = 'teacher'
) as teacher using (rollout_id, round, pos)
group by other.round, other.view
order by round_number(other.round), other.view;
