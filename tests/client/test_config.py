from pathlib import Path

import pytest

from pileus.client import config as configuration
from pileus.client.config import Config
from pileus.kernel.errors import Invalid, Unauthenticated


def test_a_configuration_is_for_its_owners_eyes_and_comes_back_as_it_was(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    config = Config(url="https://192.0.2.1:5870", authority="-----BEGIN", token="secret", project="mine")
    path = configuration.save(config, environ)
    assert path == tmp_path / ".config" / "pileus" / "config.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert configuration.load(environ) == config
    configuration.remove(environ)
    configuration.remove(environ)
    assert not path.exists()


def test_a_named_file_is_the_only_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "cli.json"
    machine.write_bytes(b'{"url": "https://machine:5870"}')
    monkeypatch.setattr(configuration, "OF_THE_MACHINE", machine)
    assert configuration.load({"HOME": str(tmp_path)}).url == "https://machine:5870"
    with pytest.raises(Unauthenticated):
        configuration.load({"HOME": str(tmp_path), "PILEUS_CONFIG": str(tmp_path / "none.json")})


def test_ones_own_file_comes_before_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "cli.json"
    machine.write_bytes(b'{"url": "https://machine:5870"}')
    monkeypatch.setattr(configuration, "OF_THE_MACHINE", machine)
    environ = {"HOME": str(tmp_path)}
    configuration.save(Config(url="https://own:5870"), environ)
    assert configuration.load(environ).url == "https://own:5870"


def test_a_file_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Invalid, match=r"config\.json"):
        configuration.load({"PILEUS_CONFIG": str(tmp_path / "config.json")})


def test_an_authority_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    assert Config(url="x", authority=str(tmp_path / "ca.pem")).authority_pem().startswith("-----BEGIN")
    with pytest.raises(Invalid):
        Config(url="x", authority=str(tmp_path / "none.pem")).authority_pem()
