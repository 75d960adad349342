-- How much of the teacher's probability lies outside what is kept, by round and by tens of tokens.
select round, pos // 10 * 10 as from_token, count(*) as tokens, avg(exp(tail)) as mean_tail, max(exp(tail)) as largest
from all_tokens
where tail is not null
group by round, from_token
order by round_number(round), from_token;
