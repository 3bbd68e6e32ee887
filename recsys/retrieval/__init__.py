"""Queries to recommendations. A product service imports this and nothing of training."""

from recsys.retrieval.retriever import Recommendations, Retriever

__all__ = ["Recommendations", "Retriever"]
