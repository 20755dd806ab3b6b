"""Rewriting a Hugging Face checkpoint so that the engines' linear layout is the plan."""
