"""Teach an image tower the prompts of pictures: the paper's Image2Prompt pre-training.

python pretrain_image2prompt.py --cfg-path ipiqa/projects/image2prompt/rn50.yaml
"""

from ipiqa.cli.train import script

if __name__ == "__main__":
    raise SystemExit(script(None))
