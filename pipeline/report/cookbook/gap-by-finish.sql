-- How disagreement goes with the end of a response (stop or length) and with its grade, by round.
select
    round, finish_reason, correct, count(distinct rollout_id) as rollouts,
    avg(behaviour_logprob - sampled_logprob) as mean_gap, avg(abs(behaviour_logprob - sampled_logprob)) as mean_distance
from all_tokens
join (select rollout_id, round, finish_reason from all_rollouts) as written using (rollout_id, round)
left join (select rollout_id, round, correct from all_grades) as graded using (rollout_id, round)
where sampled_logprob is not null
group by round, finish_reason, correct
order by round_number(round), finish_reason, correct nulls last;
