-- Prompts that no response of the latest round answers correctly, those of the largest gap first.
select prompt_id, count(distinct rollout_id) as rollouts, avg(behaviour_logprob - sampled_logprob) as mean_gap
from all_tokens
join (select rollout_id, round, correct from all_grades) as graded using (rollout_id, round)
where round = (select arg_max(round, round_number(round)) from all_grades)
group by prompt_id
having not bool_or(coalesce(correct, true))
order by mean_gap desc nulls last, prompt_id
limit 30;
