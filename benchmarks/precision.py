"""Errors of products in float32 while a network learns its data, against float64: the table of docs/theory.md, §3.4.

    python benchmarks/precision.py

It takes seconds and prints the table. Each error is ‖found − exact‖/‖exact‖, the median over ten random vectors. The
exact products are textbook ones in float64, by nested transforms of ``torch.func``; they use nothing of nme.
"""

from statistics import median

import torch
from page import markdown_table
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn import functional

from nme.curvature import Curvature

STEPS = (0, 200, 2000)
VECTORS = 10
COLUMNS = ["g, p − onehot", "g, nme", "Gv, textbook", "Gv, nme", "Nv, Hv − Gv", "Nv, p − onehot", "Nv, nme"]


def textbook(model: nn.Module, inputs: Tensor, labels: Tensor, vector: Tensor) -> dict[str, Tensor]:
    """The gradient g, Hv, Gv and Nv of cross-entropy in the model's own dtype, with the residual softmax − onehot."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def logits(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(s) for part, (name, s) in zip(parts, shapes.items(), strict=True)}
        return functional_call(model, parameters, (inputs,))

    def along(function) -> Tensor:
        return jvp(grad(function), (theta,), (vector,))[1]

    z, jv = jvp(logits, (theta,), (vector,))
    p = z.softmax(1)
    pull = vjp(logits, theta)[1]
    residual = p - functional.one_hot(labels, z.shape[1])
    return {
        "g": pull(residual / len(z))[0],
        "H": along(lambda t: functional.cross_entropy(logits(t), labels)),
        "G": pull((p * jv - p * (p * jv).sum(1, keepdim=True)) / len(z))[0],
        "N": along(lambda t: (residual * logits(t)).sum() / len(z)),
    }


def errors(model: nn.Module, inputs: Tensor, labels: Tensor, vector: Tensor) -> dict[str, float]:
    """The relative error of each way, by column, and ‖Nv‖/‖Hv‖ as ``share``."""
    exact = textbook(model.double(), inputs.double(), labels, vector.double())
    rounded = textbook(model.float(), inputs, labels, vector)
    own = Curvature(model, nn.CrossEntropyLoss(), (inputs, labels))
    products = own.products(vector)
    ways = [rounded["g"], own.gradient(), rounded["G"], products.gauss_newton]
    ways += [rounded["H"] - rounded["G"], rounded["N"], products.nme]
    exacts = [exact[column[0]] for column in COLUMNS]
    found = {c: ((w - e).norm() / e.norm()).item() for c, w, e in zip(COLUMNS, ways, exacts, strict=True)}
    return found | {"share": (exact["N"].norm() / exact["H"].norm()).item()}


def main() -> None:
    """Train, measure at ``STEPS`` and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    inputs = torch.randn(64, 8)
    labels = (inputs @ torch.randn(8, 4)).argmax(1)
    vectors = torch.randn(VECTORS, sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    rows = []
    for step in range(max(STEPS) + 1):
        loss = functional.cross_entropy(model(inputs), labels)
        if step in STEPS:
            found = [errors(model, inputs, labels, vector) for vector in vectors]
            middle = {column: median(one[column] for one in found) for column in found[0]}
            shown = [f"{loss.item():.2g}", f"{middle['share']:.2f}", *(f"{middle[c]:.0e}" for c in COLUMNS)]
            rows.append([str(step), *(number.replace("e-0", "e-") for number in shown)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(markdown_table(["steps", "loss", "‖Nv‖/‖Hv‖", *COLUMNS], rows))


if __name__ == "__main__":
    main()
