"""The service: what turns a stream of labelled events into a model that stays true.

config, stream_config, policy_config  every setting once, with its reason; yaml_lines for the lines
sources/, decode, dead_letters        the way in: records to columns, and what is no event
loop, policy, gate, trainer           the work: predict, watch, repair, prove, promote, take back
checkpoint, metrics, api, service     state that survives, numbers, HTTP, and the process itself
cli/, up                              the command `driftd`, and daemon and server as one

This room imports every other; none imports it. Nothing here is imported eagerly, so that
`driftd serve` and the operators' commands run without the training extra.
"""
