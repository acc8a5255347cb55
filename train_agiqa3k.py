"""Train and evaluate IP-IQA on AGIQA-3k over k folds.

python train_agiqa3k.py --cfg-path ipiqa/projects/agiqa3k/ipiqa.yaml --num_cv 10
"""

from ipiqa.cli.train import script

if __name__ == "__main__":
    raise SystemExit(script("agiqa_3k"))
