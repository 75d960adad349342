-- What each stage took: seconds, tokens per second and bytes per token; null where another machine made some of it.
select
    stage, round, files, tokens, seconds, tokens / nullif(seconds, 0) as tokens_per_second,
    bytes / nullif(tokens, 0) as bytes_per_token, seconds / sum(seconds) over () as share_of_seconds
from timings
order by round_number(round), stage, round;
