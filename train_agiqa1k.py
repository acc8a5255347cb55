"""Train and evaluate IP-IQA on AGIQA-1k over k folds.

python train_agiqa1k.py --cfg-path ipiqa/projects/agiqa1k/ipiqa.yaml --num_cv 10
"""

from ipiqa.cli.train import script

if __name__ == "__main__":
    raise SystemExit(script("agiqa_1k"))
