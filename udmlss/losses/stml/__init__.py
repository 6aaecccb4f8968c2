"""STML: Self-Taught Metric Learning without Labels."""

from udmlss.losses.stml.relaxed_contrastive import relaxed_contrastive_loss, teacher_similarity
from udmlss.losses.stml.stml_loss import STMLLoss

__all__ = ["STMLLoss", "relaxed_contrastive_loss", "teacher_similarity"]
