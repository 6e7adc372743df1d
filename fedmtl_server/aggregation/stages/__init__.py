"""The stages of the aggregation, one module each. `fedmtl_server.aggregation.pipeline` documents their order."""
