"""From patches to embeddings: where patches come from, devices, engines, and the pipe through them.

`pipe` is what the others are for: its `lanes` take the `rows` of several slides over the `queues` of a device.
`adaptation` goes through a sample of the patches before it. May import statistics, encoders and below.
"""
