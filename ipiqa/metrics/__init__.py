"""What is measured: agreement of predictions with mean opinion scores, and how sure we may be of it."""

from ipiqa.metrics.agreement import METRICS, LogisticFit, aggregate, fit_logistic, measure
from ipiqa.metrics.retrieval import retrieval
from ipiqa.metrics.significance import PairedTest, Spread, describe, holm, paired_test

__all__ = ["METRICS", "LogisticFit", "PairedTest", "Spread", "aggregate", "describe", "fit_logistic", "holm", "measure"]
__all__ += ["paired_test", "retrieval"]
