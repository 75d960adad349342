-- Where in a response the student differs: the mean gap by round and by tens of tokens.
select
    round, pos // 10 * 10 as from_token, count(*) as tokens, avg(behaviour_logprob - sampled_logprob) as mean_gap
from all_tokens
where sampled_logprob is not null
group by round, from_token
order by round_number(round), from_token;
