"""The controller file: what goes in comes out, and anything else is refused in one line."""

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from foveate.controller import ControllerError, Layout, Network, Normalisation, load, save
from foveate.controller.artefact import MAGIC
from foveate.controller.observation import TOKEN_GROUPS
from foveate.plans.portfolio import ActionTable, Portfolio

pytestmark = pytest.mark.fast
START = len(MAGIC) + 16


@pytest.fixture
def saved(tmp_path, make_artefact):
    """A file and what went into it."""
    artefact, path = make_artefact("policy"), tmp_path / "tiny.fov"
    save(path, artefact)
    return path, artefact


def rewrite(path, change):
    """Changes the header and seals the file again, as an honest writer of other content would."""
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data, len(MAGIC) + 8)[0]
    header = json.loads(data[START : START + length])
    text = change(header)
    text = json.dumps(header).encode() if text is None else text
    arrays = data[START + length : -32]
    body = MAGIC + struct.pack("<QQ", START + len(text) + len(arrays) + 32, len(text)) + text + arrays
    path.write_bytes(body + hashlib.sha256(body).digest())


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ["policy", "regression"])
    @pytest.mark.parametrize("whole_plans", [False, True])
    def test_everything_comes_back(self, tmp_path, make_artefact, kind, whole_plans):
        artefact = make_artefact(kind, whole_plans=whole_plans, onnx_sha256="cd" * 32, outside_limit=0.25)
        save(tmp_path / "a.fov", artefact)
        back = load(tmp_path / "a.fov", fingerprint=artefact.fingerprint)
        for name in ("layout", "portfolio", "host", "fingerprint", "lam", "calibration", "outside_limit", "provenance"):
            assert getattr(back, name) == getattr(artefact, name), name
        assert (
            back.onnx_sha256 == artefact.onnx_sha256 and back.table == artefact.table and back.plans == artefact.plans
        )
        assert (back.network.kind, back.network.shape, back.network.activation) == (
            kind,
            artefact.network.shape,
            "tanh",
        )
        assert back.network.arrays.keys() == artefact.network.arrays.keys()
        for name, values in artefact.network.arrays.items():
            assert np.array_equal(back.network.arrays[name], values) and back.network.arrays[name].dtype == np.float32
        for name in ("mean", "scale", "low", "high", "clip"):
            assert np.array_equal(getattr(back.normalisation, name), getattr(artefact.normalisation, name))

    def test_a_controller_for_videos_comes_back_as_one(self, tmp_path, make_artefact):
        base = make_artefact("policy")
        wide = Layout.of(dict(zip(TOKEN_GROUPS, base.layout.features[2:], strict=True)), video=True)
        ones, arrays = np.ones(wide.size, np.float32), dict(base.network.arrays)
        arrays["trunk.0.weight"] = np.zeros((len(arrays["trunk.0.bias"]), wide.size), np.float32)
        network, normalisation = replace(base.network, arrays=arrays), Normalisation(0 * ones, ones, -ones, ones)
        save(tmp_path / "v.fov", replace(base, layout=wide, normalisation=normalisation, network=network))
        back = load(tmp_path / "v.fov")
        assert back.layout == wide and back.layout.video and not base.layout.video

    def test_the_same_artefact_gives_the_same_bytes_and_the_returned_digest(self, tmp_path, make_artefact):
        digests = [save(tmp_path / name, make_artefact(seed=4)) for name in ("a.fov", "b.fov")]
        data = (tmp_path / "a.fov").read_bytes()
        assert data == (tmp_path / "b.fov").read_bytes() and digests[0] == digests[1] == data[-32:].hex()
        again = tmp_path / "c.fov"
        save(again, load(tmp_path / "a.fov"))
        assert again.read_bytes() == data

    def test_saving_replaces_in_one_step_and_leaves_nothing_behind(self, saved, make_artefact):
        path, _ = saved
        save(path, make_artefact(seed=9))
        assert load(path).provenance["seed"] == 9 and list(path.parent.iterdir()) == [path]

    def test_a_failed_save_keeps_the_old_file(self, saved, make_artefact, monkeypatch):
        path, _ = saved
        before = path.read_bytes()

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(path, make_artefact(seed=9))
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


class TestDamage:
    def test_every_flipped_bit_is_noticed(self, saved):
        path, _ = saved
        data = path.read_bytes()
        rng = np.random.default_rng(0)
        frame = range(8 * START)  # every bit of magic and lengths
        rest = rng.integers(8 * START, 8 * len(data), 200)
        for bit in (*frame, *rest, 8 * len(data) - 1):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(ControllerError, match="not a controller file|truncated|altered") as caught:
                load(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("left", [1, 18, 19, 30, START, START + 1, 500, -33, -32, -1])
    def test_a_truncated_file_is_called_truncated(self, saved, left):
        path, _ = saved
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ControllerError, match="truncated"):
            load(path)

    def test_bytes_added_at_the_end_are_noticed(self, saved):
        path, _ = saved
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(ControllerError, match="altered"):
            load(path)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle", b"{}"])
    def test_another_kind_of_file_is_not_a_controller(self, tmp_path, content):
        (tmp_path / "x.fov").write_bytes(content)
        with pytest.raises(ControllerError, match="not a controller file"):
            load(tmp_path / "x.fov")

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        for path, why in ((tmp_path / "none.fov", "No such file"), (tmp_path, "directory")):
            with pytest.raises(ControllerError, match=why):
                load(path)


def _swap(header):
    names = header["layout"]["groups"]["pixels"]
    names[2], names[3] = names[3], names[2]


def _other_table(header):
    header["actions"]["methods"][1], header["actions"]["methods"][2] = (
        header["actions"]["methods"][2],
        header["actions"]["methods"][1],
    )


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda h: h.update(version=2), "version 2 of the format, this code reads 1"),
            (lambda h: h.pop("version") and None, "version None"),
            (lambda h: h["layout"].update(version=7), "observation version is 7"),
            (_swap, "feature 2 of group 'pixels' is 'light_share', this code has 'dark_share'"),
            (lambda h: h["layout"]["groups"]["pixels"].pop() and None, "feature 23 of group 'pixels' is 'nothing'"),
            (lambda h: h["layout"]["groups"]["block1"].append("new"), r"normalisation mean: needs \(88,\)"),
            (_other_table, "the action table is not the one of the portfolio"),
            (lambda h: h["actions"]["ratios"].reverse(), "action table"),
            (lambda h: h["actions"].pop("levels") and None, "action table"),
            (lambda h: h["network"].update(shape=[5, 4]), r"'ratio.weight': expected \(20, 16\), found \(25, 16\)"),
            (lambda h: h["network"].update(kind="oracle"), "network kind: unknown 'oracle'"),
            (lambda h: h["network"].update(activation="gelu"), "network activation: unknown 'gelu'"),
            (lambda h: h["normalisation"].update(clip=0), "0 < clip"),
            (lambda h: h["dial"].update(calibration=[[1, 0.2], [0.5, 0.4]]), "lambdas must rise"),
            (lambda h: h["dial"].update(lam="soft"), "'<' not supported"),
            (lambda h: h.pop("provenance") and None, "'provenance' is missing"),
            (lambda h: h["host"].update(fingerprint=7), "must be texts"),
            (lambda h: h["arrays"][0].__setitem__(1, [10**9, 10**9]), "does not fit the file"),
            (lambda h: h["arrays"][0].__setitem__(1, [-1, 4]), "does not fit the file"),
            (lambda h: h["arrays"].pop() and None, "bytes left over"),
            (lambda h: h["arrays"][0].__setitem__(0, "network.extra"), "missing|expected nothing|found nothing"),
            (lambda h: b"[]", "header: not a JSON object"),
            (lambda h: b"{", "header: "),
            (lambda h: b'{"version": NaN}', "NaN is not allowed"),
            (lambda h: b"[" * 10**5, "header: "),
        ],
    )
    def test_a_sealed_file_of_other_content_is_refused_in_one_line(self, saved, change, message):
        path, _ = saved
        rewrite(path, change)
        with pytest.raises(ControllerError, match=message) as caught:
            load(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)

    def test_another_host_is_refused_by_name(self, saved):
        path, artefact = saved
        assert load(path, fingerprint=artefact.fingerprint).host == "tiny"
        with pytest.raises(
            ControllerError, match=r"made for host 'tiny' \(abababababab...\), this host is 000000000000"
        ):
            load(path, fingerprint="0" * 64)

    def test_token_features_of_another_order_are_refused(self, saved, layout):
        path, _ = saved
        tokens = {
            group: names for group, names in layout.to_dict()["groups"].items() if group not in ("pixels", "question")
        }
        assert load(path, token_features=tokens).layout == layout
        tokens["layer1"].reverse()
        with pytest.raises(ControllerError, match="feature 0 of group 'layer1' is 'mass', this code has 'entropy'"):
            load(path, token_features=tokens)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"provenance": {"loss": float("nan")}}, "not JSON compliant"),
            ({"provenance": {"path": object()}}, "not JSON serializable"),
            ({"lam": 0.0}, "lam 0.0 must be positive"),
            ({"outside_limit": 1.5}, "outside_limit 1.5"),
        ],
    )
    def test_what_could_not_be_loaded_is_not_written(self, tmp_path, make_artefact, fields, message):
        with pytest.raises(ControllerError, match=message):
            save(tmp_path / "a.fov", make_artefact(**fields))
        assert list(tmp_path.iterdir()) == []

    def test_weights_that_are_not_finite_are_not_written(self, tmp_path, make_artefact):
        artefact = make_artefact()
        arrays = {**artefact.network.arrays, "method.bias": np.full(5, np.inf, np.float32)}
        broken = replace(artefact, network=Network("policy", artefact.network.shape, "tanh", arrays))
        with pytest.raises(ControllerError, match="'method.bias' holds NaN or infinity"):
            save(tmp_path / "a.fov", broken)

    def test_a_table_of_another_size_than_the_network_is_not_written(self, tmp_path, make_artefact):
        portfolio = Portfolio.from_dict({"version": 1, "name": "small", "stages": {"prefill": {"fastv": [0.5]}}})
        actions = ActionTable.from_portfolio(portfolio).to_dict()
        with pytest.raises(ControllerError, match=r"the table has \(2, 2\) \(rows, levels\), the network \(5, 5\)"):
            save(tmp_path / "a.fov", make_artefact(actions=actions, portfolio=portfolio.to_dict()))

    def test_whole_plans_must_begin_with_the_uncompressed_one(self, tmp_path, make_artefact):
        artefact = make_artefact("regression", whole_plans=True)
        plans = {"plans": artefact.actions["plans"][::-1]}
        with pytest.raises(ControllerError, match="first plan must be the uncompressed one"):
            save(tmp_path / "a.fov", replace(artefact, actions=plans))
