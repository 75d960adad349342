-- How often the student's token is the teacher's likeliest, and among the ids that the teacher's view keeps, by round.
select round, count(*) as tokens, avg((rank is not null and rank = 1)::integer) as is_likeliest,
    avg((rank is not null)::integer) as is_kept
from all_tokens
left join (
    select rollout_id, round, pos, id as token_id, rank from all_support where view = 'teacher' and own
) as kept using (rollout_id, round, pos, token_id)
where sampled_logprob is not null
group by round
order by round_number(round);
