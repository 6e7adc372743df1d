"""The history's tables through the versions of FedMTL, for Alembic.

A new revision goes into `versions/` under the next number, with `fedmtl_server.storage.history` changed alike; a test
compares the two. What has been released is never edited.
"""
