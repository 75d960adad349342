-- The views of pipeline/report/sql.py over the schema `files`, whose tables are the shards as they lie, with their `filename`.

create macro round_number(round) as coalesce(try_cast(regexp_extract(round, '[0-9]+') as integer), -1);

create view prompts as
select * exclude (filename) from files.prompts;

create view teacher_rollouts as
select * exclude (filename), regexp_extract(filename, '([0-9]+)[.]parquet$', 1)::integer as bucket
from files.teacher_rollouts;

create view all_rollouts as
select * exclude (filename, place), place.round, place.bucket::integer as bucket, written_in <> place.round as kept
from (
    select *, regexp_extract(filename, '([^/]+)/([0-9]+)[.]parquet$', ['round', 'bucket']) as place
    from files.rollouts
);

-- A few bytes per rollout, so that what is joined with it stays as quick as a scan.
create view files.written as
select rollout_id, round, kept from all_rollouts;

create view all_grades as
select grade.* exclude (filename, place), place.round, place.bucket::integer as bucket, written.kept
from (
    select *, regexp_extract(filename, '([^/]+)/([0-9]+)[.]parquet$', ['round', 'bucket']) as place
    from files.grades
) as grade
left join files.written as written on written.rollout_id = grade.rollout_id and written.round = place.round;

create view all_scores as
select
    score.* exclude (filename, place), place.round, place.view, place.bucket::integer as bucket, written.kept
from (
    select *, regexp_extract(
        filename, '([^/]+)/(?:views/)?([^/]+)/([0-9]+)[.]parquet$', ['round', 'view', 'bucket']
    ) as place
    from files.scores
) as score
left join files.written as written on written.rollout_id = score.rollout_id and written.round = place.round;

create view rollouts as
select * from all_rollouts
semi join (
    select rollout_id, arg_max(round, round_number(round)) as round from all_rollouts group by rollout_id
) as latest using (rollout_id, round);

create view grades as
select * from all_grades
semi join (
    select rollout_id, arg_max(round, round_number(round)) as round from all_grades group by rollout_id
) as latest using (rollout_id, round);

create view scores as
select * from all_scores
semi join (
    select rollout_id, view, arg_max(round, round_number(round)) as round from all_scores group by rollout_id, view
) as latest using (rollout_id, view, round);

-- Lists of one row are unnested side by side; those of a rollout without a score are null and give nulls.
-- With `each_round` a response meets the score of its own round; else there is but one, whichever round it is from.
-- `token_text` is a function of sql.py's: it runs where the column is asked for alone, and decodes an id once.
create macro tokens_of(responses, scored, each_round) as table
select *, token_text(token_id) as token
from (
    select
        rollout_id, prompt_id, sample, response.round, bucket, kept,
        unnest(range(len(response_ids)))::integer as pos,
        unnest(response_ids) as token_id,
        unnest(behaviour_logprobs) as behaviour_logprob,
        unnest(sampled_logprobs) as sampled_logprob,
        unnest(tail_logprobs) as tail,
        unnest(entropies) as entropy
    from query_table(responses) as response
    left join (
        select rollout_id as scored_id, round as scored_in, sampled_logprobs, tail_logprobs, entropies
        from query_table(scored) where view = 'teacher'
    ) as teacher on scored_id = rollout_id and (not each_round or scored_in = response.round)
);

create view all_tokens as
select * from tokens_of('all_rollouts', 'all_scores', true);

create view tokens as
select * from tokens_of('rollouts', 'scores', false);

create macro entries(listing) as table
select
    rollout_id, round, view, bucket, kept, pos, rank, id, logprob, rank <= own_entries as own, token_text(id) as token
from (
    select
        * exclude (ids, logprobs),
        unnest(range(1, len(ids) + 1))::integer as rank, unnest(ids) as id, unnest(logprobs) as logprob
    from (
        select
            rollout_id, round, view, bucket, kept,
            unnest(range(len(support_ids)))::integer as pos,
            unnest(support_ids) as ids, unnest(support_logprobs) as logprobs, unnest(own) as own_entries
        from query_table(listing)
    )
);

create view all_support as
select * from entries('all_scores');

create view support as
select * from entries('scores');

-- Responses to the evaluation prompts: `greedy` ones and `sampled` ones of each checkpoint.
create view evaluations as
select
    rollout.checkpoint, rollout.mode, rollout.prompt_id, rollout.sample, rollout.rollout_id, grade.correct, grade.reward,
    grade.feedback, rollout.finish_reason, len(rollout.response_ids) as tokens, rollout.text
from (
    select *, unnest(regexp_extract(
        filename, '([^/]+)/rollouts/([a-z]+)-[0-9]+[.]parquet$', ['checkpoint', 'mode']
    )) from files.evaluation_rollouts
) as rollout
left join (
    select *, unnest(regexp_extract(
        filename, '([^/]+)/grades/([a-z]+)-[0-9]+[.]parquet$', ['checkpoint', 'mode']
    )) from files.evaluation_grades
) as grade using (checkpoint, mode, rollout_id);

create view metrics as
select * from files.metrics;

create view histories as
select checkpoint, step::integer as step, * exclude (checkpoint, step) from files.histories;

create view validations as
select checkpoint, step::integer as step, * exclude (checkpoint, step) from files.validations;

create view drift as
select
    round, policy, bound, floor, regexp_extract(shard.key, '[0-9]+')::integer as bucket, shard.value.drift,
    shard.value.margin, shard.value.responses, shard.value.effective_sample_size, shard.value.written_in, shard.value.kept
from (select * exclude (shards), unnest(map_entries(shards)) as shard from files.drift);

create view timings as
select * from files.timings;
