"""What params.yaml, machine.yaml and recipes may say: strict, frozen classes, and the reading of YAML into them.

`reading` reads and names every mistake at once; `params` is params.yaml section by section, `machine` is machine.yaml;
`models`, `prompts` and `views` hold what several sections share; `recipe`, `term`, `weights`, `targets` and `derived`
are the grammar of recipes. Nothing here opens a model, a shard or a data set.
"""
