"""The tokenizer that counts prompts: the project's own, and whose counts they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fmgauge.config import LoadedConfig, load_config
from fmgauge.errors import ConfigError
from fmgauge.workloads import cache_dir, docs_text, docs_tokenizer_path, tokenizer_for

pytestmark = pytest.mark.usefixtures("own_cache")
LLAMACPP = {"kind": "llamacpp"}
OPENAI = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}


@pytest.fixture
def docs_tokenizer() -> Tokenizer:
    """The project's own tokenizer, read by the library alone."""
    return Tokenizer.from_file(str(docs_tokenizer_path()))


def config_with(folder: Path, *experiments: tuple[dict[str, str], str | None]) -> LoadedConfig:
    """A config in `folder` whose one workload goes to (endpoint, tokenizer) experiments."""
    config = {
        "run": {"name": "test"},
        "workloads": [{"name": "w", "source": {"kind": "python_docs"}}],
        "experiments": [
            {
                "name": f"experiment-{number}",
                "model": {"name": "m"} | ({"tokenizer": tokenizer} if tokenizer else {}),
                "endpoint": endpoint,
                "workloads": ["w"],
                "load": [{"kind": "closed_loop", "concurrency": [1]}],
            }
            for number, (endpoint, tokenizer) in enumerate(experiments)
        ],
    }
    path = folder / "config.yml"
    path.write_text(json.dumps(config, indent=1))
    return load_config(path)


def write_word_tokenizer(path: Path, words: Sequence[str]) -> None:
    """A tokenizer.json that splits at white space and knows `words`, and truncates to two."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=2)
    tokenizer.save(str(path))


def test_special_tokens_have_the_first_ids(docs_tokenizer: Tokenizer) -> None:
    """The model file relies on ids 0 to 3 for the special tokens."""
    ids = [docs_tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<|user|>", "<|assistant|>")]
    assert ids == [0, 1, 2, 3]


def test_vocabulary_has_the_size_asked_for(docs_tokenizer: Tokenizer) -> None:
    """The model's embedding has one row for each of the 4096 tokens."""
    assert docs_tokenizer.get_vocab_size() == 4096


@pytest.mark.parametrize("digit", "0123456789")
def test_a_digit_after_a_space_is_one_token(docs_tokenizer: Tokenizer, digit: str) -> None:
    """A salt's digits are a token each, so every salt is as long as every other."""
    assert docs_tokenizer.encode(f"7 {digit} 7").tokens == ["7", f"Ġ{digit}", "Ġ7"]


def test_any_text_comes_back_from_its_tokens(docs_tokenizer: Tokenizer) -> None:
    """A byte-level vocabulary loses nothing, not even what the docs never hold."""
    text = "naïve 漢字 🚲\tif x:\n    pass"
    assert docs_tokenizer.decode(docs_tokenizer.encode(text).ids) == text


def test_training_again_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer depends on nothing but text and settings."""
    first = docs_tokenizer_path()
    monkeypatch.setenv("FMGAUGE_CACHE_DIR", str(tmp_path))
    second = docs_tokenizer_path()
    assert (second.name, second.read_bytes()) == (first.name, first.read_bytes())


def test_a_trained_tokenizer_is_kept() -> None:
    """The second asking reads the file that the first one wrote."""
    written_at = docs_tokenizer_path().stat().st_mtime_ns
    assert docs_tokenizer_path().stat().st_mtime_ns == written_at


def test_vocabularies_of_different_sizes_have_files_of_their_own() -> None:
    """The size is among what names the file."""
    path = docs_tokenizer_path(512)
    assert path != docs_tokenizer_path()
    assert Tokenizer.from_file(str(path)).get_vocab_size() == 512


@pytest.mark.whole
def test_processes_that_build_it_at_once_all_get_it_whole(tmp_path: Path) -> None:
    """Every process that starts on an empty cache reads a complete tokenizer."""
    program = (
        "from fmgauge.workloads import docs_tokenizer_path\n"
        "from tokenizers import Tokenizer\n"
        "print(Tokenizer.from_file(str(docs_tokenizer_path(600))).get_vocab_size())\n"
    )
    environment = os.environ | {"FMGAUGE_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert answers == [("600\n", "")] * 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable that moves the cache."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FMGAUGE_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match="FMGAUGE_CACHE_DIR"):
        docs_tokenizer_path()


def test_without_the_variable_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is a folder named fmgauge where the system keeps caches."""
    monkeypatch.delenv("FMGAUGE_CACHE_DIR")
    assert "fmgauge" in cache_dir().parts


def test_docs_text_is_the_language_reference() -> None:
    """It holds the topic on assert statements, and as much English as one book chapter."""
    text = docs_text()
    assert any(topic.startswith('The "assert" statement') for topic in text)
    assert sum(map(len, text)) > 300_000


def test_counts_are_those_of_the_tokenizer_alone(tmp_path: Path, docs_tokenizer: Tokenizer) -> None:
    """A count holds no special tokens."""
    texts = ["The assert statement", "", "x = 1\n"]
    tokenizer = tokenizer_for(
        loaded := config_with(tmp_path, (LLAMACPP, None)), loaded.config.workloads[0]
    )
    assert tokenizer.count(texts) == [len(docs_tokenizer.encode(text).ids) for text in texts]


def test_the_embedded_models_counts_are_exact(tmp_path: Path) -> None:
    """The project's own tokenizer is the embedded model's."""
    loaded = config_with(tmp_path, (LLAMACPP, None))
    assert not tokenizer_for(loaded, loaded.config.workloads[0]).approximate


def test_counts_for_a_model_whose_tokenizer_is_not_told_are_approximate(tmp_path: Path) -> None:
    """A server whose tokenizer is not named is counted by the project's own, and that is said."""
    loaded = config_with(tmp_path, (OPENAI, None))
    tokenizer = tokenizer_for(loaded, loaded.config.workloads[0])
    assert (tokenizer.label, tokenizer.approximate) == ("docs-bpe-4096", True)


def test_a_model_file_of_the_users_has_no_known_tokenizer(tmp_path: Path) -> None:
    """An embedded server with another model file is not counted exactly by the project's own."""
    loaded = config_with(tmp_path, ({"kind": "llamacpp", "gguf": "other.gguf"}, None))
    assert tokenizer_for(loaded, loaded.config.workloads[0]).approximate


@pytest.mark.parametrize("named", ["words.json", "folder"])
def test_a_named_tokenizer_counts(tmp_path: Path, named: str) -> None:
    """A tokenizer.json, or the folder that holds one, counts whole texts, truncated nowhere."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "words.json", tmp_path / "folder" / "tokenizer.json"):
        write_word_tokenizer(path, ["red", "green"])
    loaded = config_with(tmp_path, (OPENAI, named))
    tokenizer = tokenizer_for(loaded, loaded.config.workloads[0])
    assert (tokenizer.label, tokenizer.approximate) == (named, False)
    assert tokenizer.count(["red green red green red", "blue"]) == [5, 1]


def test_the_first_experiment_that_has_a_tokenizer_counts(tmp_path: Path) -> None:
    """Where experiments differ, the config's order decides and the label says whose it is."""
    write_word_tokenizer(tmp_path / "words.json", ["red"])
    loaded = config_with(tmp_path, (OPENAI, None), (OPENAI, "words.json"), (LLAMACPP, None))
    assert tokenizer_for(loaded, loaded.config.workloads[0]).label == "words.json of experiment-1"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("{", "not JSON"), ('{"vocab": {}}', "no model with a vocab")],
)
def test_a_tokenizer_that_is_not_there_is_an_error_at_its_key(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    """The error names the config's file, the key's line, and what is wrong with the file."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    loaded = config_with(tmp_path, (OPENAI, None), (OPENAI, "./tokenizer.json"))
    with pytest.raises(ConfigError, match=reason) as caught:
        tokenizer_for(loaded, loaded.config.workloads[0])
    (problem,) = caught.value.problems
    line = loaded.path.read_text().splitlines()[(problem.line or 0) - 1]
    assert problem.key == "experiments.1.model.tokenizer"
    assert '"tokenizer": "./tokenizer.json"' in line


def test_a_hub_id_that_the_hub_does_not_give_is_an_error_at_its_key(tmp_path: Path) -> None:
    """Without the hub, a hub id that was never fetched is a problem of the config."""
    loaded = config_with(tmp_path, (OPENAI, "no-such-name/no-such-model"))
    program = (
        "import sys\n"
        "from fmgauge.config import load_config\n"
        "from fmgauge.errors import ConfigError\n"
        "from fmgauge.workloads import tokenizer_for\n"
        "loaded = load_config(sys.argv[1])\n"
        "try:\n"
        "    tokenizer_for(loaded, loaded.config.workloads[0])\n"
        "except ConfigError as error:\n"
        "    print(error.problems[0].key)\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(loaded.path)],
        env=offline,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("experiments.0.model.tokenizer\n", 0)
