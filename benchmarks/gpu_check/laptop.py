"""Small networks, whose steps on a GPU are bound by launches, with and without CUDA graphs; and the loaders."""

import statistics
from collections.abc import Callable

import torch

from gpu_check import timing
from gpu_check.networks import SMALL_STRENGTH, batch_of, data_of, endless, member_of, network, recipe_of, update_of
from gpu_check.session import Session
from nme.runtime.random_streams import stream

SMALL = ("MLP", "CNN, 1-d", "CNN, 2-d")
WITHOUT_RANDOM_NUMBERS = ("sgd", "grad_norm", "sam")  # a graph would replay the numbers that it was captured with
JPEG_SIDES = (400, 500)  # px, as large as ImageNet's typical image


def check(session: Session) -> None:
    """Time small networks and loaders."""
    for name in SMALL:
        if session.has_time("fast", f"{name}, small", 1 if session.quick else 8):
            with session.guard("fast", f"{name}, small"):
                _small(session, name)
    if session.has_time("fast", "loaders", 1 if session.quick else 8):
        with session.guard("fast", "loaders"):
            _cifar_on_the_device(session)
            _jpeg(session)


def _small(session: Session, name: str) -> None:
    """A step as ``nme train`` does it, the update of a fixed batch alone, and on a GPU the same as a CUDA graph."""
    net = network(name, session.quick)
    inputs, labels = (tensor.to(session.device) for tensor in batch_of(net))
    data = data_of(net, 20, session.device)
    for method in WITHOUT_RANDOM_NUMBERS:
        member = member_of(recipe_of(net), data, net.classes)
        model = member_of(recipe_of(net), data, net.classes).model.train()

        def update(model=model, method=method) -> torch.Tensor:
            return update_of(method, model, inputs, labels, SMALL_STRENGTH).gradient_norm

        steps = {"step": endless(member, method), "update": update}
        if session.cuda:
            try:
                steps["update as a CUDA graph"] = captured(update)
            except RuntimeError as error:  # some operation cannot be captured
                session.skip("fast", f"{name}, {method}, CUDA graph", str(error).splitlines()[0])
        times = timing.timed(steps, session)
        for kind, found in times.items():
            session.add("fast", name, f"{method}, {kind}", "seconds", statistics.median(found))


def captured(update: Callable[[], torch.Tensor]) -> timing.Step:
    """Capture an update as a CUDA graph; returns its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # PyTorch's rule: warm up on another stream
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = update()

    def replay(kept=kept) -> None:  # the graph writes to the memory of what it returned
        graph.replay()

    return replay


def _cifar_on_the_device(session: Session) -> None:
    """Images per second of batches of 128 that are cropped and flipped on the device, where the images are."""
    net = network("WideResNet-28-10", session.quick)
    data = data_of(net, 20, session.device)

    def epoch() -> None:
        for number, examples in enumerate(data.fetch(data.order(stream(0, "order")).split(net.batch))):
            data.augmented(examples, "crop_flip", stream(0, "augment", number))

    epoch()
    seconds = timing.seconds_of(epoch, 1 if session.quick else 5, session.device)
    session.add("fast", "loaders", "CIFAR-10 on the device", "images/s", len(data.labels) / seconds)
    _needs(session, "WideResNet-28-10", len(data.labels) / seconds, "parts of a step that loading takes")


def _jpeg(session: Session) -> None:
    """Images per second that one core decodes, and how many cores a GPU needs."""
    from torchvision.io import decode_jpeg, encode_jpeg

    # Smooth noise, since real images are smooth: about 50 kB, half of ImageNet's mean.
    coarse = torch.randint(256, (1, 3, 50, 62), generator=stream(2, "gpu check"), dtype=torch.uint8)
    image = torch.nn.functional.interpolate(coarse.float(), JPEG_SIDES, mode="bilinear").byte()[0]
    jpeg, threads = encode_jpeg(image, quality=90), torch.get_num_threads()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    seconds = timing.seconds_of(lambda: decode_jpeg(jpeg), 5 if session.quick else 200, cpu)
    torch.set_num_threads(threads)
    session.add("fast", "loaders", f"JPEG, {len(jpeg) // 1000} kB, one core", "images/s", 1 / seconds)
    _needs(session, "ResNet-50", 1 / seconds, "cores that decode for one GPU")


def _needs(session: Session, name: str, speed: float, quantity: str) -> None:
    """What the fastest step of SGD needs of a loader: its images per second over the loader's."""
    found = [
        row["value"] / row["batch_size"]
        for row in session.rows
        if row.get("network_name") == name and (row["case"], row["quantity"]) == ("sgd", "seconds")
    ]
    if found:
        session.add("fast", "loaders", name, quantity, 1 / min(found) / speed)
