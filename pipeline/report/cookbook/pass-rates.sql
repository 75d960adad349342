-- What share of responses is correct, and of prompts has a correct one, by round and domain.
select round, domain, count(*) as prompts, avg(share) as correct, avg((share > 0)::integer) as solved,
    avg((share = 1)::integer) as always
from (
    select grade.round, rollout.prompt_id, avg(grade.correct::integer) as share
    from all_grades as grade
    join all_rollouts as rollout on rollout.rollout_id = grade.rollout_id and rollout.round = grade.round
    where grade.correct is not null
    group by grade.round, rollout.prompt_id
)
join (select distinct prompt_id, domain from prompts) using (prompt_id)
group by round, domain
order by round_number(round), domain;
