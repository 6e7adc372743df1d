"""Models for Hugging Face's libraries."""
