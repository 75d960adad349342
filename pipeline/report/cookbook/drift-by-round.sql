-- How far the student had moved from the shards of the round before, in nats per token, and how many were kept.
select
    round, policy, bound, floor, count(*) as shards, sum(kept::integer) as kept, avg(drift) as mean_drift,
    max(drift) as largest_drift, min(effective_sample_size) as least_effective_sample_size
from drift
group by round, policy, bound, floor
order by round_number(round);
