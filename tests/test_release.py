"""What setup.py and .ci/release make of the sources: flags, the description for an index, the bill of materials."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

import fastopt

ROOT = Path(__file__).parents[1]

if not (ROOT / "setup.py").exists():
    pytest.skip("the sources are not beside the tests", allow_module_level=True)
setuptools = pytest.importorskip("setuptools")


def load(monkeypatch, path: str):
    """A script as a module."""
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    monkeypatch.chdir(ROOT)
    given: dict[str, object] = {}
    loader = importlib.machinery.SourceFileLoader("script", str(ROOT / path))
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader("script", loader))
    loader.exec_module(script)
    script.given = given
    return script


def test_visual_studio_gets_no_flag_of_gcc(monkeypatch):
    script = load(monkeypatch, "setup.py")
    flags = script.for_msvc([*script.CFLAGS, "-mavx2", "-mfma"])
    assert {"/clang:-std=c11", "/clang:-ffp-contract=off", "/clang:-fopenmp-simd", "-O3", "-mavx2"} <= {*flags}
    assert not [flag for flag in flags if not flag.startswith(("/clang:-", "-O", "-m", "-W"))]


def test_visual_studio_is_asked_for_clang_cl(monkeypatch):
    script = load(monkeypatch, "setup.py")

    class Compiler:
        cc = "cl.exe"

        def initialize(self) -> None: ...

    monkeypatch.setattr(script.shutil, "which", lambda name: f"C:/{name}.exe")
    compiler = Compiler()
    script.clang_cl(compiler)
    assert compiler.cc == "C:/clang-cl.exe"
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="needs clang-cl"):
        script.clang_cl(Compiler())


@pytest.mark.parametrize(
    ("platform", "isas", "threads"),
    [
        ("linux-x86_64", ["baseline", "avx2", "avx512"], ["-pthread"]),
        ("linux-aarch64", ["baseline"], ["-pthread"]),
        ("macosx-11.0-arm64", ["baseline"], ["-pthread"]),
        ("macosx-10.13-x86_64", ["baseline", "avx2", "avx512"], ["-pthread"]),
        ("win-amd64", ["baseline", "avx2", "avx512"], []),
        ("emscripten-4.0.9-wasm32", ["baseline"], []),
    ],
)
def test_flags_are_those_of_the_target(monkeypatch, platform, isas, threads):
    monkeypatch.setattr("sysconfig.get_platform", lambda: platform)
    script = load(monkeypatch, "setup.py")
    assert [*script.ISA_FLAGS] == isas
    assert threads == script.THREADS
    assert ("-msimd128" in script.ISA_FLAGS["baseline"]) == platform.endswith("wasm32")


def test_nothing_is_contracted(monkeypatch):
    """Bits would depend on whether a compiler has a fused multiply-add at hand: clang's default, and gcc's."""
    given = load(monkeypatch, "setup.py").given
    flags = [options["cflags"] for _, options in given["libraries"]]
    flags += [module.extra_compile_args for module in given["ext_modules"]]
    compiled = [source for _, options in given["libraries"] for source in options["sources"]]
    assert all("-ffp-contract=off" in each for each in flags)
    assert {path.name for path in (ROOT / "csrc").glob("*.c")} <= {Path(source).name for source in compiled}


def test_the_description_has_no_links_that_an_index_cannot_follow(monkeypatch):
    text = load(monkeypatch, "setup.py").given["long_description"]
    assert "pip install fastopt" in text
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", text)
    assert "docs/training.md has its layers" in text  # the words of a link stay


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for path in (ROOT / "fastopt").rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(path.parts) for path in found)


def test_licences_are_in_the_root_and_named(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT AND CC-BY-4.0"
    assert all((ROOT / name).is_file() for name in project["license-files"])
    assert project["dynamic"] == ["version", "readme"]  # each is written elsewhere, once
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+|\.dev\d+)?", fastopt.__version__)


def test_the_bill_of_materials(monkeypatch):
    pytest.importorskip("zopfli")
    pytest.importorskip("ziglang")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    script = load(monkeypatch, ".ci/release")
    monkeypatch.setenv("COMMIT", "0" * 40)
    monkeypatch.setattr(script, "version", lambda name: "1.0")
    metadata = "Metadata-Version: 2.4\nName: fastopt\nVersion: 0.1.0\n"
    first, other = (script.bill(target, metadata) for target in ("musllinux_1_2_x86_64", "musllinux_1_2_aarch64"))
    assert first == script.bill("musllinux_1_2_x86_64", metadata)
    found = json.loads(first)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert found["metadata"]["component"]["version"] == "0.1.0"
    assert found["serialNumber"] != json.loads(other)["serialNumber"]
    refs = {part["bom-ref"] for part in found["components"]} | {found["metadata"]["component"]["bom-ref"]}
    assert {row["ref"] for row in found["dependencies"]} | {
        r for row in found["dependencies"] for r in row["dependsOn"]
    } == refs
