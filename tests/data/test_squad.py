"""SQuAD's files as rows, and answers that are checked against their contexts."""

import gzip
import json
from pathlib import Path

import pytest

from softprompt.data import read_data
from softprompt.data.squad import ContextAnswer, read_answer_column
from softprompt.errors import DataError

CONTEXT = "Der Eiffelturm 🗼 in Paris wurde 1889 fertig; Paris liegt an der Seine."


def qa(identifier: str, *answers: tuple[str, int], **more: object) -> dict[str, object]:
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": identifier, "question": f"{identifier}?", "answers": listed, **more}


def squad(*questions: dict[str, object], context: str = CONTEXT, **more: object) -> dict:
    paragraphs = [{"context": context, "qas": [*questions]}]
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": paragraphs, **more}]}


def write(path: Path, content: object, *, indent: int | None) -> Path:
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", ["train-v2.0.json", "dev.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_becomes_the_rows_of_the_hub_s_data_set(tmp_path, name: str, indent) -> None:
    content = squad(
        qa("q1", ("Paris", 20), ("Paris", 45), is_impossible=False),
        qa("q2", is_impossible=True, plausible_answers=[{"text": "1889", "answer_start": 32}]),
        qa("q3", ("🗼", 15)),
    )
    content["data"].append({"paragraphs": [{"context": "Rome.", "qas": [qa("q4", ("Rome", 0))]}]})
    rows = read_data(str(write(tmp_path / name, content, indent=indent))).to_list()
    assert [row["id"] for row in rows] == ["q1", "q2", "q3", "q4"]
    assert rows[0] == {
        "id": "q1",
        "title": "T",
        "context": CONTEXT,
        "question": "q1?",
        "answers": {"text": ["Paris", "Paris"], "answer_start": [20, 45]},
    }
    assert rows[1]["answers"] == {"text": [], "answer_start": []}
    assert rows[3]["title"] is None
    for row in rows:
        found = read_answer_column(row["answers"], row["context"], where="a row")
        assert [row["context"][a.start : a.start + len(a.text)] for a in found] == row["answers"][
            "text"
        ]


def test_an_unanswerable_question_needs_no_list(tmp_path) -> None:
    question = {"id": "q", "question": "?", "is_impossible": True}
    (row,) = read_data(str(write(tmp_path / "a.json", squad(question), indent=None))).to_list()
    assert row["answers"] == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["Paris", "1889"], "answer_start": [20, 32]},
        [{"text": "Paris", "answer_start": 20}, {"text": "1889", "answer_start": 32, "x": 1}],
    ],
)
def test_answers_in_both_forms(value) -> None:
    found = read_answer_column(value, CONTEXT, where="row 0")
    assert found == (ContextAnswer("Paris", 20), ContextAnswer("1889", 32))


@pytest.mark.parametrize("value", [{"text": [], "answer_start": []}, []])
def test_no_answer(value) -> None:
    assert read_answer_column(value, CONTEXT, where="row 0") == ()


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("1889", 33, "at character 33 of its context, where '889 ' is; it stands once, at 32."),
        ("1889", 35, "it stands once, at 32. Write that, if it is meant."),  # counted in bytes
        ("Paris", 21, "it stands at 20, 45. Write which of them is meant"),
        ("e", 9999, "where '' is; it stands at 1, 8, 30 and more."),
        ("paris", 20, "with other letters, 'Paris' stands at 20. Write the answer as the context"),
        ("London", 20, "nor anywhere else in it. Copy the answer from the context"),
        ("Der", -1, "it stands once, at 0."),
        (" ", 3, "an answer of row 7 is empty. Leave it out"),
        ("", 0, "an answer of row 7 is empty. Leave it out"),
    ],
)
def test_an_answer_that_is_not_there(text: str, start: int, message: str) -> None:
    value = {"text": [text], "answer_start": [start]}
    with pytest.raises(DataError) as error:
        read_answer_column(value, CONTEXT, where="row 7")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Paris", r'are a str without the lists.*Write them as \{"text"'),
        (None, "are a NoneType without the lists"),
        ({"text": ["Paris"]}, "are a dict without the lists text and answer_start"),
        ({"text": ["a", "b"], "answer_start": [0]}, "are 2 texts, but 1 values of answer_start"),
        ({"text": ["Paris"], "answer_start": ["20"]}, "the answer_start '20', but a text and"),
        ({"text": ["Paris"], "answer_start": [True]}, "the answer_start True, but"),
        ({"text": [None], "answer_start": [0]}, "has the text None"),
        ([{"text": "Paris"}], "the answer_start None"),
        (["Paris"], "are a list without the lists"),
    ],
)
def test_other_forms(value, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_answer_column(value, CONTEXT, where="row 0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (squad(qa("q7", ("Paris", 3))), r"answer 'Paris' of question 'q7' of .*bad\.json does not"),
        (squad(qa("q7", ("Paris", 20), is_impossible=True)), "is marked is_impossible, but has"),
        (squad({"id": "q7", "question": "?"}), "question 'q7' of .* has no answers"),
        (squad({"id": "q7", "answers": []}), "question 'q7' of .* has no text 'question'"),
        (squad({"question": "?", "answers": []}), "a question in paragraph 0 of article 0 .*'id'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "paragraph 0 of article 0 .* text 'context'"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "no list of objects 'qas'"),
        ({"data": [{"paragraphs": []}, {}]}, r"article 1 \(counted from 0\) .* 'paragraphs'"),
        ({"data": [{"paragraphs": []}]}, "has no rows"),
        ({"data": [{"text": "x", "label": "y"}]}, "the list under 'data'. Save that list alone"),
    ],
)
def test_faulty_files(tmp_path, content, message: str) -> None:
    path = write(tmp_path / "bad.json", content, indent=1)
    with pytest.raises(DataError, match=message):
        read_data(str(path))
