"""The two places where plain autograd would waste most of a CPU's time: the routed experts and the loss over the
vocabulary. Both are autograd functions with hand-written backward passes."""

import torch
import torch.nn.functional as F
from torch import nn


class GroupedExperts(torch.autograd.Function):
    """Tokens sorted by expert, one product per expert on its own rows, results put back in token order.

    x [n, hidden], weights [n, k], chosen [n, k] expert ids; gate_up [e, 2w, hidden], down [e, hidden, w].
    Gathering by a permutation both ways means that no scattered addition is ever needed.
    """

    @staticmethod
    def forward(ctx, x, weights, chosen, gate_up, down):
        n, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(n * k, device=order.device)
        bounds = [0] + torch.bincount(chosen.flatten(), minlength=len(down)).cumsum(0).tolist()
        rows = x.index_select(0, order // k)
        both = x.new_empty(n * k, gate_up.shape[1])
        out = x.new_empty(n * k, x.shape[1])
        for e, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if end > begin:
                torch.mm(rows[begin:end], gate_up[e].t(), out=both[begin:end])
        gate, up = both.chunk(2, -1)
        act = F.silu(gate) * up
        for e, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if end > begin:
                torch.mm(act[begin:end], down[e].t(), out=out[begin:end])
        ctx.save_for_backward(rows, both, act, out, weights, order, back, gate_up, down)
        ctx.bounds = bounds
        return torch.bmm(weights[:, None], out.index_select(0, back).view(n, k, -1)).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        rows, both, act, out, weights, order, back, gate_up, down = ctx.saved_tensors
        n, k = weights.shape
        spans = [(e, b, c) for e, (b, c) in enumerate(zip(ctx.bounds, ctx.bounds[1:])) if c > b]
        grad_weights = torch.bmm(out.index_select(0, back).view(n, k, -1), grad[:, :, None]).squeeze(-1)
        grad_out = grad.index_select(0, order // k) * weights.flatten()[order][:, None]
        grad_down, grad_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        grad_act = torch.empty_like(act)
        for e, begin, end in spans:
            torch.mm(grad_out[begin:end], down[e], out=grad_act[begin:end])
            torch.mm(grad_out[begin:end].t(), act[begin:end], out=grad_down[e])
        gate, up = both.chunk(2, -1)
        sigmoid = gate.sigmoid()
        grad_both = torch.empty_like(both)
        grad_gate, grad_up = grad_both.chunk(2, -1)
        torch.mul(grad_act, gate * sigmoid, out=grad_up)
        torch.mul(grad_act * up, sigmoid * (1 + gate * (1 - sigmoid)), out=grad_gate)
        grad_rows = torch.empty_like(rows)
        for e, begin, end in spans:
            torch.mm(grad_both[begin:end], gate_up[e], out=grad_rows[begin:end])
            torch.mm(grad_both[begin:end].t(), rows[begin:end], out=grad_gate_up[e])
        grad_x = grad_rows.index_select(0, back).view(n, k, -1).sum(1)
        return grad_x, grad_weights, None, grad_gate_up, grad_down


class RoutedExperts(nn.Module):
    def __init__(self, count, hidden, width):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(count, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, width))

    def forward(self, x, weights, chosen):
        return GroupedExperts.apply(x, weights, chosen, self.gate_up, self.down)


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of x @ head.T against targets, each with its weight. Works through the tokens in chunks and
    makes the gradients on the way, so that the [tokens, vocabulary] array is never whole in memory but stays in cache."""

    CHUNK = 128

    @staticmethod
    def forward(ctx, x, head, targets, weights):
        total = x.new_zeros(())
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head)
        weights = (weights / weights.sum())[:, None]
        for begin in range(0, len(x), HeadLoss.CHUNK):
            here = slice(begin, begin + HeadLoss.CHUNK)
            part, want = x[here], targets[here, None]
            logits = part @ head.t()
            norm = logits.logsumexp(-1, keepdim=True)
            total += ((norm - logits.gather(1, want)) * weights[here]).sum()
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, want, grad.new_full(want.shape, -1.0))
            grad.mul_(weights[here])
            torch.mm(grad, head, out=grad_x[here])
            grad_head.addmm_(grad.t(), part)
        ctx.save_for_backward(grad_x, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_head = ctx.saved_tensors
        return grad * grad_x, grad * grad_head, None, None


def head_loss(x, head, targets, weights):
    return HeadLoss.apply(x.reshape(-1, x.shape[-1]), head, targets.reshape(-1), weights.reshape(-1))
