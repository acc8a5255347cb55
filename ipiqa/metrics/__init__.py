"""What is measured: agreement of predictions with mean opinion scores, and how sure we may be of it."""

from ipiqa.metrics.agreement import METRICS, LogisticFit, aggregate, fit_logistic, measure
from ipiqa.metrics.resampling import CHOSEN, DRAWN, Images, Resampled, pair_accuracy, plain, within_srcc
from ipiqa.metrics.retrieval import retrieval
from ipiqa.metrics.significance import PairedTest, Spread, describe, holm, paired_test

__all__ = ["DRAWN", "METRICS", "Images", "LogisticFit", "PairedTest", "Resampled", "Spread", "aggregate", "describe"]
__all__ += ["CHOSEN", "fit_logistic", "holm", "measure", "pair_accuracy", "paired_test", "plain", "retrieval"]
__all__ += ["within_srcc"]
