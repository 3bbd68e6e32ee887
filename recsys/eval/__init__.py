"""Recommendations to numbers. Never imports training."""
