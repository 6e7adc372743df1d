"""The stages of the aggregation: one file for each; `fedmtl_server.aggregation.pipeline` has their order."""
