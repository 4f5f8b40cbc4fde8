"""Files of rows: what is read, and the one line about whatever is wrong."""

from __future__ import annotations

import hashlib
import json
import pathlib
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kerasdiff
from kerasdiff.adapter_files import EmbeddingFile, Lora
from kerasdiff.batch import Row, number_prompts, read_rows
from kerasdiff.batch.file_names import file_name
from kerasdiff.batch.rows import make_row


def written(folder: pathlib.Path, name: str, content: str | bytes) -> pathlib.Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_has_a_prompt_a_line(tmp_path):
    path = written(tmp_path, "a.TXT", "\ufeffa cat\r\n\r\n  a dog, \u2028 black \r" + "x\n" * 9)
    rows = read_rows(path)
    assert [(row.id, row.prompt) for row in rows[:3]] == [("01", "a cat"), ("03", "a dog, \u2028 black"), ("04", "x")]
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert rows[-1].id == "12"


def test_a_line_of_options_is_a_row(tmp_path):
    lines = [
        'a "red" circle',
        '--prompt "a red circle, --ar" --steps 20 --seed 5 --cfg_scale 7.5 --sampler_name "DPM++ 2M Karras" --width 64',
        "--prompt a blue star --negative_prompt fog, rain --num_steps 9 --size 64x128 --id star",
        '--negative_prompt "" --prompt "a"',
        '--prompt="a=b, c" --steps=20 --cfg-scale=7.5',
    ]
    plain, first, second, third, fourth = read_rows(written(tmp_path, "a.txt", "\n".join(lines)))
    assert plain == Row("1", 'a "red" circle')
    options = {"seed": 5, "guidance_scale": 7.5, "num_steps": 20, "sampler": "DPM++ 2M Karras", "width": 64}
    assert first == Row("2", "a red circle, --ar", **options)
    assert second == Row("star", "a blue star", "fog, rain", num_steps=9, width=64, height=128)
    assert third == Row("4", "a", "")
    assert fourth == Row("5", "a=b, c", num_steps=20, guidance_scale=7.5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("# a comment", "a line that begins with # or // is a prompt, not a comment"),
        ("// a comment", "a line that begins with # or // is a prompt, not a comment"),
        ('"a red circle"', "quotes around a line are part of the prompt"),
        ("'a red circle'", "quotes around a line are part of the prompt"),
        ("“a red circle”", "quotes around a line are part of the prompt"),
        ("a red circle -s 20 -W512", "options behind a prompt are part of it"),
        ("Prompt;seed", "a line is a prompt, not a header; name the file .csv"),
        ("Negative prompt: fog", "a line is a prompt, also what AUTOMATIC1111 writes below it"),
        ("Steps: 20, Sampler: Euler a", "a line is a prompt, also what AUTOMATIC1111 writes below it"),
        ("a red circle --ar 16:9", "options behind a prompt are part of it; a line of options begins with --prompt"),
        ('{"prompt": "a"}', "a line is a prompt, not JSON; name the file .jsonl"),
    ],
)
def test_what_is_taken_literally_is_said_once(tmp_path, line, told):
    with pytest.warns(UserWarning, match=r"a\.txt line 2: ") as found:
        rows = read_rows(written(tmp_path, "a.txt", f"a ring\n{line}\n{line}\n"))
    assert [row.prompt for row in rows] == ["a ring", line, line]
    (one,) = found
    assert told in str(one.message)
    assert one.filename == __file__


def test_a_table_has_names_in_its_first_line(tmp_path):
    lines = [
        "prompt, seed,guidance_scale,num_steps,sampler,height,width,image,strength,negative_prompt,id",
        '"a cat, asleep\non two lines",7,2.5,9,Euler a,64,128,../b.png,0.5,a dog,one',
        "",
        ",,,,,,,,,,",
        "a bird,,,,,,,,,,",
        'a fish,,,,,,,,,,"fünf 🎈"',
    ]
    first, second, third = read_rows(written(tmp_path, "a.csv", "\ufeff" + "\n".join(lines)))
    image = str(tmp_path.parent / "b.png")
    assert first == Row("one", "a cat, asleep\non two lines", "a dog", 7, 2.5, 9, "Euler a", 64, 128, image, 0.5)
    assert second == Row("6", "a bird")
    assert third == Row("fünf 🎈", "a fish")


def test_objects_have_names(tmp_path):
    values = {
        "id": "a",
        "prompt": "ein großer Kreis",
        "seed": 2**64 - 1,
        "strength": 1,
        "image": "/b.png",
        "height": None,
    }
    path = written(tmp_path, "a.jsonl", json.dumps(values) + '\n\n{"prompt": "x"}')
    assert read_rows(path) == (Row("a", "ein großer Kreis", seed=2**64 - 1, strength=1, image="/b.png"), Row("3", "x"))


def test_a_link_stays_a_link_that_pictures_refuse(tmp_path):
    (row,) = read_rows(written(tmp_path, "a.csv", "prompt,image\nx,https://a.b/c.png"))
    assert row.image == "https://a.b/c.png"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'prompt,loras,embeddings\nx,"s.safetensors:0.8, t:1:0.5","toy.pt:<toy>,words"'),
        ("a.txt", '--prompt x --loras s.safetensors:0.8,t:1:0.5 --embeddings "toy.pt:<toy>, words"'),
        (
            "a.jsonl",
            '{"prompt": "x", "loras": ["s.safetensors:0.8", ["t", 1, 0.5]], '
            '"embeddings": [["toy.pt", "<toy>"], "words"]}',
        ),
        (
            "a.jsonl",
            '{"prompt": "x", "loras": [{"file": "s.safetensors", "scale": 0.8}, {"file": "t", "text_scale": 0.5}], '
            '"embeddings": [{"file": "toy.pt", "trigger": "<toy>"}, {"file": "words", "trigger": null}]}',
        ),
    ],
)
def test_rows_name_loras_and_embeddings_beside_their_file(tmp_path, name, content):
    (row,) = read_rows(written(tmp_path, name, content))
    place = str(tmp_path)
    assert row.loras == (Lora(f"{place}/s.safetensors", 0.8, 0.8), Lora(f"{place}/t", 1.0, 0.5))
    assert row.embeddings == (EmbeddingFile(f"{place}/toy.pt", "<toy>"), EmbeddingFile(f"{place}/words"))


def test_names_on_the_hub_and_no_loras_at_all(tmp_path):
    lines = ('"org/name:0.5"', "[]", "null")
    rows = read_rows(written(tmp_path, "a.jsonl", "\n".join(f'{{"prompt": "x", "loras": {one}}}' for one in lines)))
    assert [row.loras for row in rows] == [(Lora("org/name", 0.5, 0.5),), (), None]
    (tmp_path / "org").mkdir()
    assert make_row({"id": "a", "prompt": "x", "loras": "org/name"}, tmp_path).loras == (Lora(f"{tmp_path}/org/name"),)


def test_a_seed_follows_from_the_id_alone(tmp_path):
    rows = read_rows(written(tmp_path, "a.csv", "id,prompt\ncat,a\ndog,b"))
    (alone,) = read_rows(written(tmp_path, "b.csv", "id,prompt\ncat,other"))
    assert rows[0].first_seed == alone.first_seed == int(hashlib.sha256(b"cat").hexdigest()[:8], 16) == 2007988107
    assert rows[1].first_seed != rows[0].first_seed
    assert Row("cat", "a", seed=0).first_seed == 0


def test_prompts_are_numbered_and_their_seeds_follow_one_another():
    rows = number_prompts(["a"] * 10, batch_size=3, seed=5)
    assert [row.id for row in rows[:2]] == ["01", "02"]
    assert [row.first_seed for row in rows] == list(range(5, 35, 3))
    assert number_prompts(["a", "b"])[1] == Row("2", "b")


def test_files_are_named_after_ids():
    assert file_name("a b", 1, 1) == "a b.png"
    assert [file_name("7", number, 2, "webp") for number in (1, 2)] == ["7_1.webp", "7_2.webp"]


CSV = "id,prompt,seed\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt has no rows"),
        ("a.txt", " \n\t\n", "a.txt has no rows"),
        ("a.csv", "prompt\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.xlsx", "x", "the name must end in one of .txt, .csv, .jsonl"),
        ("a.txt", b"a\nb\xff\n", "a.txt line 2: not UTF-8"),
        ("a.csv", "prompt\na".encode("utf-16"), "a.csv line 1: not UTF-8"),
        ("a.csv", "id,seed\na,1", "a.csv line 1: column 'prompt' is missing"),
        ("a.csv", "promt,seed\na,1", "line 1: column='promt' is unknown; did you mean 'prompt'?"),
        ("a.csv", "prompt;seed\na;1", "line 1: column='prompt;seed' is unknown: its cells are separated by semicolons"),
        ("a.csv", '\n"prompt";"steps"\n"a";1', 'line 2: column=\'"prompt";"steps"\' is unknown: its cells are separ'),
        ("a.csv", "prompt\tseed\na\t1", "its cells are separated by tabs; save the file with commas between them"),
        ("a.csv", "prompt|seed\na|1", "its cells are separated by vertical bars"),
        ("a.csv", "sep=;\nprompt;seed\na;1", "line 1: 'sep=;' is a note for Excel; remove this line"),
        ("a.csv", "a red circle\na dog", "line 1: there is no header; the first line must name the columns, such as"),
        ("a.csv", '"a cat, asleep",7', "line 1: there is no header"),
        ("a.csv", "prompt\na".encode("utf-16-le"), "a.csv line 1: not UTF-8 but UTF-16, as Excel's"),
        ("a.txt", "a cat".encode("utf-16"), "a.txt line 1: not UTF-8 but UTF-16, as Excel's"),
        ("a.csv", ",prompt\n0,a", "line 1: column 1 has no name; give it one of id, prompt"),
        ("a.csv", "prompt,steps\na,3", "is unknown; 'steps' is called num_steps here"),
        ("a.csv", "text,cfgs\na,3", "is unknown; 'text' is called prompt here"),
        ("a.csv", "Prompt,Seed\na,3", "is unknown; 'Prompt' is called prompt here"),
        (
            "a.csv",
            "prompt,spacing\na,karras",
            "is unknown; 'spacing' belongs to all rows and is an argument of the job",
        ),
        ("a.csv", 'prompt,seed\n"a, b",1\na, "b, c"', "line 3: a quote must follow the comma at once; leave the space"),
        ("a.csv", "prompt,seed\n“a, b”,1", "the header has 2; text with commas needs quotes around it, straight ones"),
        ("a.csv", "prompt,seed\na,1.0", "line 2: seed='1.0' is not an integer; write 1"),
        ("a.csv", 'prompt,strength\na,"0,5"', "line 2: strength='0,5' is not a number; write 0.5"),
        ("a.csv", "prompt,sampler\na,DPM adaptive", "line 2: sampler='DPM adaptive' is not available here"),
        (
            "a.csv",
            "prompt,sampler\na,Euler Simple",
            "line 2: sampler='Euler Simple': spacing='simple' is not available",
        ),
        (
            "a.json",
            "[]",
            "the name must end in one of .txt, .csv, .jsonl, .parquet; save it as .jsonl, one object per line",
        ),
        ("a.tsv", "x", "the name must end in one of .txt, .csv, .jsonl, .parquet; save it as .csv"),
        ("a.ndjson", "x", ".parquet; save it as .jsonl"),
        ("a.csv", "prompt,prompt\na,b", "line 1: duplicate column 'prompt'"),
        ("a.csv", CSV + "x,a,1\ny,,2", "line 3: prompt is missing"),
        ("a.csv", CSV + "x,a", "line 2: 2 cells, but the header has 3"),
        ("a.csv", CSV + "x,a, b,1", "line 2: 4 cells, but the header has 3; text with commas needs quotes"),
        ("a.csv", CSV + "x,a,1\nX,b,2", "line 3: ids 'X' and 'x' name the same file where upper and lower case"),
        ("a.csv", CSV + "x,a,1\n\nx,b,2", "line 4: duplicate id 'x'"),
        ("a.csv", CSV + "é,a,1\ne\u0301,b,2", "line 3: ids 'e\u0301' and 'é' name the same file"),
        ("a.csv", CSV + 'x,"a\nb",1\nx,c,2', "line 4: duplicate id 'x'"),
        ("a.csv", CSV + "x,a,1.5", "line 2: seed='1.5' is not an integer"),
        ("a.csv", CSV + "x,a,-1", "line 2: seed=-1 is out of range"),
        ("a.csv", CSV + "x,a,-1", "; leave it out for one that follows from the id"),
        ("a.csv", CSV + f"x,a,{2**64}", "line 2: seed=18446744073709551616 is out of range"),
        ("a.csv", "prompt,strength\na,much", "line 2: strength='much' is not a number"),
        ("a.csv", "prompt,strength\na,1.5", "line 2: strength=1.5 is out of range"),
        ("a.csv", "prompt,guidance_scale\na,nan", "line 2: guidance_scale=nan is not finite"),
        ("a.csv", "prompt,sampler\na,eular", "line 2: sampler='eular' is unknown; did you mean 'euler'?"),
        ("a.csv", "prompt,height\na,0", "line 2: height=0 is out of range"),
        ("a.csv", 'prompt\n"a', "line 2: not CSV: "),
        ("a.csv", 'prompt\n"a"b', "line 2: not CSV: "),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "a.jsonl line 2: prompt must be a string, not int (3)"),
        ("a.jsonl", '{"id": 3, "prompt": "a"}', "line 1: id must be a string, not int (3)"),
        ("a.jsonl", '{"prompt": "a", "loras": 3}', "line 1: loras must be a path or a list of paths, not int (3)"),
        ("a.jsonl", '{"prompt": "a", "loras": ["a", 0.5]}', "loras[1] must be a path, not float (0.5)"),
        ("a.jsonl", '{"prompt": "a", "loras": [{"path": "a"}]}', "loras[0] must be an object with file, scale, text_"),
        ("a.csv", "prompt,loras\na,b:1000", "line 2: loras[0]=1000 is out of range"),
        ("a.csv", "prompt,lora\na,b", "'lora' is called loras here"),
        ("a.jsonl", '{"seed": 3}', "line 1: prompt is missing"),
        ("a.jsonl", '{"prompt": "a", "seed": 3.0}', "line 1: seed must be an integer, not float (3.0)"),
        ("a.jsonl", '{"prompt": "a", "seed": true}', "line 1: seed must be an integer, not bool (True)"),
        ("a.jsonl", '{"prompt": "a", "num_steps": "9"}', "line 1: num_steps must be an integer"),
        ("a.jsonl", '{"prompt": "a", "image": 3}', "line 1: image must be a path"),
        ("a.jsonl", '{"prompt": "a", "stength": 1}', "line 1: name='stength' is unknown; did you mean 'strength'?"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: duplicate name 'prompt' in one object"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "line 1: prompt has half of a surrogate pair"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2: not JSON: "),
        ("a.jsonl", '["a"]', "line 1: must be an object"),
        ("a.jsonl", '[{"prompt": "a"}]', "; a .jsonl has one object per line, without brackets and commas around them"),
        (
            "a.jsonl",
            '[{"prompt": "a"},\n{"prompt": "b"}]',
            "line 1: not JSON: Expecting value at character 18; a .jsonl",
        ),
        ("a.jsonl", '{\n"prompt": "a"\n}', "; each object must be on one line"),
        ("a.jsonl", '{"prompt": "a"},\n{"prompt": "b"}', "; leave the comma at the end out"),
        (
            "a.jsonl",
            '{"prompt": "a", "num_inference_steps": 9}',
            "is unknown; 'num_inference_steps' is called num_steps here",
        ),
        ("a.txt", "a cat\n--prompt a dog --restore_faces true", "a.txt line 2: --restore_faces is not available here"),
        ("a.txt", "--prompt a dog --batch_size 2", "line 1: --batch_size belongs to all rows"),
        ("a.txt", "--prompt a dog --n_iter 2", "line 1: --n_iter is called batch_size here, which belongs to all rows"),
        ("a.txt", "--prompt a dog's life", "line 1: a quote is not closed; put quotes around a prompt that has one"),
        ("a.txt", "--prompt a --seed -1", "line 1: seed=-1 is out of range"),
        ("a.txt", "--prompt a --steps 9.5", "line 1: num_steps='9.5' is not an integer"),
        ("a.txt", "--prompt a --steps 9 --num_steps 9", "line 1: --num_steps is given twice"),
        ("a.txt", "--prompt --steps 9", "line 1: --prompt has no value"),
        ("a.txt", "--ar 16:9", "line 1: '--ar' is unknown; known: --id, --prompt"),
        ("a.txt", "--steps 9", "line 1: prompt is missing"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "a", "seed": ' + "9" * 5000 + "}", "line 1: not JSON: a number has too many digits"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_line(tmp_path, name, content, message):
    with pytest.raises(kerasdiff.RequestError) as found:
        read_rows(written(tmp_path, name, content))
    line = str(found.value)
    assert message in line
    assert line.startswith(str(tmp_path)) or line.startswith("cannot read rows from")
    assert line.isprintable()


@pytest.mark.parametrize(
    ("row_id", "message"),
    [
        ("", "id is blank"),
        (" ", "id is blank"),
        ("a/b", "contains '/'"),
        ("a\\b", "contains '\\\\'"),
        ("../a", "starts with a dot"),
        (".a", "starts with a dot"),
        ("a\tb", "contains '\\t'"),
        ("a\x00", "contains '\\x00'"),
        ("a\u2028b", "contains '\\u2028'"),
        ("x" * 101, "is 101 bytes long; at most 100"),
        ("ü" * 51, "is 102 bytes long; at most 100"),
    ],
)
def test_an_id_must_be_the_name_of_a_file(tmp_path, row_id, message):
    path = written(tmp_path, "a.jsonl", json.dumps({"id": row_id, "prompt": "a"}))
    with pytest.raises(kerasdiff.RequestError) as found:
        read_rows(path)
    assert message in str(found.value)
    assert " line 1: " in str(found.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name, message in (("no.csv", "No such file or directory"), ("folder.csv", "Is a directory")):
        with pytest.raises(kerasdiff.RequestError, match=f"cannot read rows from .*{name}: {message}; check the path"):
            read_rows(tmp_path / name)
    with pytest.raises(kerasdiff.RequestError, match="rows must be a path, not int"):
        read_rows(3)


# Texts in which there is more of what matters to a reader.
TEXT = st.text(st.one_of(st.sampled_from('",\n\r{}[]:\\\0\ufeffa1 -#;'), st.characters()), max_size=60)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["a.txt", "a.csv", "a.jsonl"]),
    head=st.sampled_from(["", "prompt\n", CSV, "--prompt "]),
    text=TEXT,
)
def test_any_file_is_rows_or_one_line(tmp_path_factory, name, head, text):
    path = written(tmp_path_factory.getbasetemp(), name, (head + text).encode("utf-8", "surrogatepass"))
    line = ""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a text has literally
            rows = read_rows(path)
    except kerasdiff.RequestError as error:
        rows, line = (), str(error)
    assert "\n" not in line
    names = [file_name(row.id, 1, 1).casefold() for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.prompt for row in rows)
