"""Authentication, access control, and limits of calls."""
