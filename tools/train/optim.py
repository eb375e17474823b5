"""Muon for the matrices inside the layers (the update is made orthogonal by five Newton-Schulz steps, experts in one
batch), AdamW for embeddings, head, gates and norms."""

import torch

# Rates in units of --lr. Embeddings and head start from counted pairs (bigram.py), so they move slowly, and remember
# their gradients long: a step sees few of the tokens, and with a short memory Adam would push every absent token down
# at full speed.
ADAM_SHARES = {"embed": 0.3, "head": 0.2, "gate": 1.0, "norm": 1.0}
ADAM_BETAS = {"embed": (0.9, 0.999), "head": (0.9, 0.999), "gate": (0.9, 0.99), "norm": (0.9, 0.99)}
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(g):
    """g [batch, rows, columns] with every singular value brought near 1."""
    a, b, c = NEWTON_SCHULZ
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(parameter, group)

    def update(self, parameter, group):
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        direction = parameter.grad.lerp(average, group["momentum"])
        # Gate and up are two matrices stacked in one tensor: each is made orthogonal by itself.
        halves = 2 if getattr(parameter, "is_stacked_pair", False) else 1
        shape = parameter.shape
        matrices = direction.reshape(-1, shape[-2] // halves, shape[-1])
        update = orthogonalised(matrices).reshape(shape)
        scale = max(1.0, matrices.shape[-2] / matrices.shape[-1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * scale)


def build(model, lr, muon_lr):
    """[Muon, AdamW]; every group remembers its full rate as `base`."""
    matrices, groups = [], {"embed": [], "head": [], "gate": [], "norm": []}
    for name, parameter in model.named_parameters():
        if name.endswith("experts.gate_up"):
            parameter.is_stacked_pair = True
        if parameter.dim() < 2:
            groups["norm"].append(parameter)
        elif name.startswith("embed_tokens"):
            groups["embed"].append(parameter)
        elif name.startswith("lm_head"):
            groups["head"].append(parameter)
        elif ".gate." in name:
            groups["gate"].append(parameter)
        else:
            matrices.append(parameter)
    muon = Muon(matrices, muon_lr, weight_decay=0.01)
    adam = torch.optim.AdamW([{"params": groups[kind], "lr": lr * ADAM_SHARES[kind], "betas": ADAM_BETAS[kind]}
                              for kind in groups], eps=1e-10, weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return [muon, adam]
