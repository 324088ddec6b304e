"""Two towers trained as CLIP is, by a loss that takes the place of open_clip's.

python examples/open_clip_loss.py
python examples/open_clip_loss.py --features FILE.pt
"""

import argparse
import math

import torch
from torch import nn
from torch.nn import functional as F

from simcse_fast.losses import ClipLoss  # was: from open_clip import ClipLoss

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--features", help='saved by torch: {"image": (N, ...), "text": (N, ...)}')
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--epochs", type=int, default=20)
args = parser.parse_args()

torch.manual_seed(0)
if args.features:
    data = torch.load(args.features, weights_only=True)
    if len(data["image"]) != len(data["text"]):
        parser.error(f"{args.features}: {len(data['image'])} images, {len(data['text'])} texts.")
else:  # captions as counts of 40 words; images as what their words look like, and noise
    text = torch.full((2000, 40), 0.1).bernoulli()
    data = {"image": text @ torch.randn(40, 64) + 0.5 * torch.randn(2000, 64), "text": text}
rows = [data[name].float().flatten(1) for name in ("image", "text")]
test = torch.arange(len(rows[0]))[-max(1, len(rows[0]) // 10) :]
towers = nn.ModuleList(nn.Linear(x.shape[1], 32) for x in rows)
logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
optimizer = torch.optim.AdamW([*towers.parameters(), logit_scale], lr=3e-3)
loss = ClipLoss()


def embed(chosen):
    """Unit vectors of images and of texts."""
    return [F.normalize(tower(x[chosen]), dim=-1) for tower, x in zip(towers, rows, strict=True)]


own = torch.arange(len(test))
images, texts = embed(test)
before = ((images @ texts.T).argmax(1) == own).float().mean()
for _ in range(args.epochs):
    for chosen in torch.randperm(len(rows[0]) - len(test)).split(args.batch_size):
        optimizer.zero_grad()
        loss(*embed(chosen), logit_scale.exp()).backward()
        optimizer.step()
        logit_scale.data.clamp_(0, math.log(100))  # as open_clip does

images, texts = (x.double() for x in embed(test))
logits = logit_scale.exp() * images @ texts.T
formula = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
ours = loss(images, texts, logit_scale.exp())
after = (logits.argmax(1) == own).float().mean()
print(f"accuracy on {len(test)} held-out pairs: {before:.3f} before, {after:.3f} after")
print(f"logit_scale: {1 / 0.07:.1f} before, {logit_scale.exp().item():.1f} after")
print(f"loss: {ours:.6f}, by open_clip's formula {formula:.6f}: {abs(ours - formula):.1e} apart")
