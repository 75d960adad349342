-- Which token strings cost most: the mean gap (an estimate of KL(student ‖ teacher)), and its share of the whole.
select
    token, token_id, count(*) as count, avg(behaviour_logprob - sampled_logprob) as mean_gap,
    sum(behaviour_logprob - sampled_logprob) / sum(sum(behaviour_logprob - sampled_logprob)) over () as share
from tokens
where sampled_logprob is not null
group by token, token_id
order by sum(behaviour_logprob - sampled_logprob) desc, token_id
limit 30;
