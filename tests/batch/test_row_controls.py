"""Controls and image prompts in the rows of a job, and what goes into one request."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from stub_generator import MODEL, StubGenerator

import kerasdiff
from kerasdiff.batch import Row, read_rows, run
from kerasdiff.batch.job import make_job
from kerasdiff.batch.ray.actor import Actor, ActorSettings
from kerasdiff.batch.ray.arrow import records, rows_table
from kerasdiff.batch.ray.coordinator import Coordinator
from kerasdiff.batch.rows import make_row
from kerasdiff.controls import Control, ImagePrompt
from kerasdiff.images import reader
from kerasdiff.models.config import TINY


@pytest.fixture
def place(tmp_path):
    """A folder with the file of a network, and pictures."""
    (tmp_path / "net.safetensors").write_bytes(b"net")
    for name, shape in (("a", (64, 96)), ("b", (64, 96)), ("c", (64, 64))):
        Image.fromarray(np.full((*shape, 3), ord(name), "uint8")).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "rows.csv",
            "prompt,controls,hint,control_mode,image_prompts\n"
            'x,"net.safetensors:a.png:0.5, org/net:b.png","canny,none",prompt,"ip:a.png,b.png:0.25:0.1:0.9"',
        ),
        (
            "rows.txt",
            "--prompt x --control net.safetensors:a.png:0.5,org/net:b.png --hint canny,none --control_mode=prompt "
            "--image_prompt=ip:a.png,b.png:.25:.1:.9",
        ),
        (
            "rows.jsonl",
            json.dumps(
                {
                    "prompt": "x",
                    "controls": [["net.safetensors", "a.png", 0.5], {"model": "org/net", "image": "b.png"}],
                    "hint": ["canny", "none"],
                    "control_mode": "prompt",
                    "image_prompts": {
                        "model": "ip",
                        "image": ["a.png", "b.png"],
                        "scale": 0.25,
                        "start": 0.1,
                        "end": 0.9,
                    },
                }
            ),
        ),
    ],
)
def test_rows_name_controls_and_pictures_beside_their_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (row,) = read_rows(tmp_path / name)
    assert row.controls == (
        Control(f"{tmp_path}/net.safetensors", f"{tmp_path}/a.png", 0.5, mode="prompt", hint="canny"),
        Control("org/net", f"{tmp_path}/b.png", mode="prompt"),
    )
    assert row.image_prompts == (
        ImagePrompt(f"{tmp_path}/ip", (f"{tmp_path}/a.png", f"{tmp_path}/b.png"), 0.25, 0.1, 0.9),
    )
    table = rows_table([row, Row("none", "x"), Row("empty", "x", controls=[])])
    first, *others = [make_row(values) for values in records(table)]
    assert first == row
    assert [other.controls for other in others] == [None, ()]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"controls": "net:a.png:1:0.5:0.2"}, r"controls\[0\]: start=0.5 is after end=0.2"),
        ({"controls": [["net", ["a.png", "b.png"]]]}, r"controls\[0\].image must be a path, not list"),
        ({"controls": [["net", "a.png", [1, 2]]]}, r"controls\[0\].scale must be one number; other rows may have"),
        ({"image_prompts": "net"}, r"image_prompts\[0\] has no image; give the picture"),
        ({"hint": "canny"}, r"hint needs a control that it is for"),
        ({"controls": "net:a.png", "hint": "cany"}, r"controls\[0\].hint='cany' is unknown; did you mean 'canny'"),
        ({"control": "net:a.png"}, r"name='control' is unknown; 'control' is called controls here"),
        ({"controlnet_conditioning_scale": 1}, r"is part of controls here: kerasdiff.Control\(model, image, scale=1,"),
    ],
)
def test_what_is_wrong_with_them_is_one_line(values, message):
    with pytest.raises(kerasdiff.RequestError, match=message):
        make_row({"id": "x", "prompt": "x", **values})


def test_rows_with_the_same_networks_go_together_each_with_its_hint_and_scale(place):
    net, other = str(place / "net.safetensors"), str(place / "other.safetensors")
    a, b = str(place / "a.png"), str(place / "b.png")
    rows = [
        Row("1", "x", controls=[(net, a)]),
        Row("2", "x", controls=[(net, b, 0.5)], image_prompts=[]),
        Row("3", "x", controls=[(net, a, 0)]),
        Row("4", "x", controls=[Control(net, a, end=0.5)]),
        Row("5", "x", image_prompts=[(net, [a, b])]),
        Row("6", "x", image_prompts=[(net, [b, a], 0.5)]),
        Row("7", "x", image_prompts=[(net, b)]),
        Row("8", "x", controls=[net], image=a),
        Row("9", "x", controls=[]),
    ]
    job = make_job(rows, MODEL, {"controls": [(other, a)], "resize": "cover"})
    job.check_row(rows[0], TINY)
    whole = {"scale": 1.0, "start": 0, "end": 1, "mode": "balanced"}
    assert job.arguments["controls"] == [{"model": other, "image": a} | whole]
    assert job.hashes[other] is None
    blocks = job.blocks(TINY, {"128x128": 8})
    ids = [[target.row.id for target in block] for block in blocks]
    assert ids == [["1", "2"], ["3"], ["4"], ["5", "6"], ["7"], ["8"], ["9"]]
    asked = job.request(blocks[0])
    assert asked["controls"] == [Control(net, [a, b], [1, 0.5], sha256=job.hashes[net])]
    assert asked["resize"] == "cover"
    asked = job.request(blocks[3])
    assert asked["controls"] == [Control(other, a, [1, 1])]
    assert asked["image_prompts"] == [ImagePrompt(net, [[a, b], [b, a]], [1, 0.5], sha256=job.hashes[net])]
    assert job.request(blocks[5])["controls"] == [Control(net, None, [1], sha256=job.hashes[net])]
    assert not {"controls", "resize"} & job.request(blocks[6]).keys()
    with pytest.raises(kerasdiff.RequestError, match=r"row 'x': a control has no image, and the row has none either"):
        make_job([Row("x", "x", controls=net)], MODEL, {}).check(TINY)
    with pytest.raises(kerasdiff.RequestError, match="resize needs image"):
        make_job([Row("x", "x", controls=[])], MODEL, {"resize": "cover"}).check(TINY)
    missing = {(other, a): "there is no ControlNet or adapter", (net, "no.png"): "no.png' cannot be read"}
    for shared, message in missing.items():
        with pytest.raises(kerasdiff.KerasdiffError, match=message):
            make_job([Row("x", "x")], MODEL, {"controls": [shared]}).check(TINY)
    assert job.description != make_job([*rows[:-1], Row("9", "x")], MODEL, job.arguments).description


def test_hints_decide_the_size_of_rows_and_another_network_is_another_job(place, monkeypatch):
    rows = "id,prompt,controls\n1,x,net.safetensors:a.png\n2,x,net.safetensors:c.png\n3,x,net.safetensors:d.png\n"
    (place / "rows.csv").write_text(rows)
    generator, plan = StubGenerator(), StubGenerator.plan
    summary = run(place / "rows.csv", place / "out", generator=generator, num_steps=1)
    assert (summary.drawn, summary.failed) == (2, 1)
    assert [reader.read(place / "out" / f"{name}.png").shape[:2] for name in "12"] == [(64, 96), (64, 64)]
    assert "cannot be read: No such file or directory; check the path" in (place / "out" / "manifest.jsonl").read_text()
    assert run(place / "rows.csv", place / "out", generator=generator, num_steps=1).kept == 2
    planned = []
    monkeypatch.setattr(StubGenerator, "plan", lambda self, count, **known: planned.append(known) or plan(self, count))
    shared = {"controls": [(str(place / "net.safetensors"), place / "a.png", 0.5)], "num_steps": 1}
    assert run([Row("1", "x")], place / "shared", generator=generator, **shared).drawn == 1
    (control,) = planned[0]["controls"]
    assert (control.image, control.scale) == (str(place / "a.png"), 0.5)
    (place / "net.safetensors").write_bytes(b"other")
    with pytest.raises(kerasdiff.RequestError, match=r"holds another job, which differs in .*net.safetensors"):
        run(place / "rows.csv", place / "out", generator=generator, num_steps=1)
    monkeypatch.setattr(Actor, "_start", lambda self: None)
    actor = Actor(ActorSettings(make_job(read_rows(place / "rows.csv"), MODEL, {})), Coordinator())
    actor.generator = generator
    sizes = [actor._size(actor.settings.job, row) for row in actor.settings.job.rows[:2]]
    assert sizes == [(64, 96), (64, 64)]
