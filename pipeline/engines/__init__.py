"""Where models write and score: arrays in and arrays out, three implementations behind one protocol.

`engine` is the protocol, `open` opens an engine by name, `identity` says what of one can change a number. `hf` is
transformers: exact, everywhere; `vllm` is fast, spread over GPUs, quantised; `fake` is a bigram model whose
probabilities are known exactly, for tests. One contract test runs on all of them, above all: *scoring a response gives
back the log-probabilities that it was drawn with*. No engine reads shards or knows a stage.
"""
