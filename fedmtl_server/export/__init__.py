"""Export of trained models to Hugging Face libraries."""
