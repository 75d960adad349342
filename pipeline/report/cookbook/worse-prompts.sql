-- Evaluation prompts that the last checkpoint answers worse than the one before it, by the share of correct samples.
with shares as (
    select checkpoint, prompt_id, avg(correct::integer) as share
    from evaluations
    where mode = 'sampled' and correct is not null
    group by checkpoint, prompt_id
),
last as (
    select checkpoint from shares where checkpoint <> 'teacher'
    group by checkpoint order by round_number(checkpoint) desc limit 2
)
select
    prompt_id, earlier.checkpoint as earlier, earlier.share as share_before, later.checkpoint as later,
    later.share as share_after
from shares as earlier
join shares as later using (prompt_id)
where earlier.checkpoint in (from last) and later.checkpoint in (from last)
    and round_number(earlier.checkpoint) < round_number(later.checkpoint) and later.share < earlier.share
order by later.share - earlier.share, prompt_id
limit 30;
