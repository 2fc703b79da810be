"""The Open Inference Protocol, spoken by NVIDIA's own client to a server process."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from service import __version__
from service.graph import Session
from service.manifest import GOLDEN_FILE, Role, read_manifest, version_folders
from service.model import seeded_rows
from service.noise import draw
from tests.service.answers import answer, array, npy
from tests.service.bundles import (
    HEIGHT,
    LATENT_DIM,
    NEVER_ON,
    WIDTH,
    class_generator,
    slow_generator,
    write_bundle,
    write_vae_store,
)
from tests.service.conftest import SHIPPED_STORE
from tests.service.process import Process

pytestmark = pytest.mark.timeout(120)

GRAPHS = [
    (folder, role)
    for _, _, folder in version_folders(SHIPPED_STORE)
    for role in read_manifest(folder).graphs
]

Arrays = dict[str, NDArray[Any]]
Client = triton.InferenceServerClient


def running(store: Path, **settings: object) -> Iterator[Process]:
    process = Process(store, **settings)
    try:
        with process.ready_client():
            yield process
    finally:
        process.terminate()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def shipped_process() -> Iterator[Process]:
    yield from running(SHIPPED_STORE, num_threads=2, drain_window_s=0)


@pytest.fixture(scope="module")
def tiny_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Return a server of all kinds of tiny models, one of them broken."""
    store = write_vae_store(tmp_path_factory.mktemp("store"))
    write_bundle(store, "tiny-classes", {"generate": class_generator(3)}, labels=("a", "b", "c"))
    write_bundle(store, "tiny-slow", {"generate": slow_generator()})
    broken = write_bundle(store, "tiny-broken", {"generate": class_generator(2)}, labels=("a", "b"))
    (broken / GOLDEN_FILE).write_bytes(b"")
    # An endless run must not be taken for a quick one, which the event loop would run itself.
    limits: dict[str, object] = {"max_rows": 100, "max_body_bytes": 200_000, "quick_s": 0}
    yield from running(store, **limits, drain_window_s=0, require_all_models=False)


def client_of(process: Process) -> Client:
    with process.client() as client:
        return Client(f"127.0.0.1:{client.base_url.port}", concurrency=4)


@pytest.fixture(scope="module")
def shipped_client(shipped_process: Process) -> Iterator[Client]:
    with client_of(shipped_process) as client:
        yield client


@pytest.fixture(scope="module")
def tiny(tiny_process: Process) -> Iterator[Client]:
    with client_of(tiny_process) as client:
        yield client


def inputs_of(arrays: Arrays, *, binary: bool = True) -> list[triton.InferInput]:
    inputs = []
    for name, values in arrays.items():
        tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        inputs.append(tensor.set_data_from_numpy(values, binary_data=binary))
    return inputs


def latents(num_rows: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {"noise": rng.standard_normal((num_rows, LATENT_DIM), dtype=np.float32)}


def steps(number: int, num_rows: int = 1) -> Arrays:
    """Return noise for which the slow model takes so many steps."""
    return {"noise": np.full((num_rows, LATENT_DIM), number**0.5, np.float32)}


def refusal(call: Callable[[], object], status: int) -> str:
    """Check that the client shows our own text of an error, and return it."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == str(status)
    text: str = caught.value.message()
    assert "decoding the response" not in text  # what the client says where it finds no text
    return text


class TestServer:
    def test_it_is_alive_and_ready(self, tiny: Client) -> None:
        assert tiny.is_server_live()
        assert tiny.is_server_ready()
        assert tiny.is_model_ready("tiny-binary.log_prob")
        assert tiny.is_model_ready("tiny-latent.generate", "2")

    @pytest.mark.parametrize(
        ("name", "version"),
        [("tiny-latent", ""), ("tiny-latent.encode", ""), ("tiny-latent.generate", "3")],
    )
    def test_what_is_not_there_is_not_ready(self, tiny: Client, name: str, version: str) -> None:
        assert not tiny.is_model_ready(name, version)

    def test_it_tells_its_name_and_extensions(self, tiny: Client) -> None:
        metadata = tiny.get_server_metadata()
        assert metadata["name"] == "ptheta"
        assert metadata["version"] == __version__
        assert "binary_tensor_data" in metadata["extensions"]

    def test_it_lists_every_graph_of_every_version_and_what_is_broken(self, tiny: Client) -> None:
        states = {
            (entry["name"], entry["version"]): entry["state"]
            for entry in tiny.get_model_repository_index()
        }
        assert states["tiny-latent.generate", "1"] == states["tiny-latent.generate", "2"] == "READY"
        assert {name for name, _ in states} >= {
            f"tiny-vae.{role}" for role in ("generate", "log_prob", "encode")
        }
        assert states["tiny-broken", "1"] == "UNAVAILABLE"

    def test_a_server_that_is_not_ready_says_why(
        self, tmp_path: Path, start: Callable[..., Process]
    ) -> None:
        process = start(tmp_path)  # an empty store
        with process.client() as http, client_of(process) as client:
            response = http.get("/v2/health/ready")
            while "loaded" in response.text:
                response = http.get("/v2/health/ready")
            assert response.status_code == 503
            assert response.json()["error"] == "the model store is empty"
            assert client.is_server_live()
            assert not client.is_server_ready()


class TestModels:
    def test_metadata_tells_names_types_and_shapes(self, tiny: Client) -> None:
        metadata = tiny.get_model_metadata("tiny-vae.log_prob")
        assert metadata["inputs"] == [
            {"name": "image", "datatype": "FP32", "shape": [-1, 1, HEIGHT, WIDTH]},
            {"name": "noise", "datatype": "FP32", "shape": [-1, -1, LATENT_DIM]},
        ]
        told = {tensor["name"]: tensor["shape"] for tensor in metadata["outputs"]}
        assert told["log_prob"] == [-1]
        assert told["log_weight"] == [-1, -1]
        label = tiny.get_model_metadata("tiny-classes.generate")["inputs"][1]
        assert label == {"name": "label", "datatype": "INT64", "shape": [-1]}

    def test_versions_are_told_and_chosen(self, tiny: Client) -> None:
        assert tiny.get_model_metadata("tiny-latent.generate")["versions"] == ["1", "2"]
        arrays = latents(1)
        newest = tiny.infer("tiny-latent.generate", inputs_of(arrays))
        first = tiny.infer("tiny-latent.generate", inputs_of(arrays), model_version="1")
        assert newest.get_response()["model_version"] == "2"
        assert first.get_response()["model_version"] == "1"
        assert (newest.as_numpy("image") != first.as_numpy("image")).any()

    def test_the_configuration_tells_what_is_optional(self, tiny: Client) -> None:
        config = tiny.get_model_config("tiny-binary.generate")
        optional = {tensor["name"]: tensor["optional"] for tensor in config["input"]}
        assert optional == {"noise": False, "temperature": True}
        assert config["max_batch_size"] == 100
        assert config["output"] == [
            {"name": "image", "data_type": "TYPE_FP32", "dims": [1, HEIGHT, WIDTH]}
        ]

    def test_statistics_count_calls_rows_and_runs(self, tiny: Client) -> None:
        name = "tiny-slow.generate"
        (before,) = tiny.get_inference_statistics(name)["model_stats"]
        for _ in range(3):
            tiny.infer(name, inputs_of(steps(0, num_rows=5)))
        refusal(lambda: tiny.infer(name, inputs_of(steps(10**12)), timeout=1000), 504)
        (after,) = tiny.get_inference_statistics(name)["model_stats"]
        # What was given up on may be counted as run.
        assert after["inference_count"] - before["inference_count"] in {15, 16}
        assert after["execution_count"] - before["execution_count"] >= 3
        assert after["last_inference"] > before["last_inference"]
        counts = {
            key: (numbers["count"] - before["inference_stats"][key]["count"], numbers["ns"])
            for key, numbers in after["inference_stats"].items()
        }
        assert {key: count for key, (count, _) in counts.items() if count} == {
            "success": 3,
            "fail": 1,
            "queue": 3,
            "compute_infer": 3,
        }
        total, parts = counts["success"][1], counts["queue"][1] + counts["compute_infer"][1]
        assert total == pytest.approx(parts, abs=2)  # each is rounded to a nanosecond
        assert counts["compute_infer"][1] > 0

    def test_statistics_of_all_graphs_are_told_at_once(self, tiny: Client) -> None:
        told = tiny.get_inference_statistics()["model_stats"]
        index = tiny.get_model_repository_index()
        ready = {(entry["name"], entry["version"]) for entry in index if entry["state"] == "READY"}
        assert {(entry["name"], entry["version"]) for entry in told} == ready


@pytest.mark.parametrize(
    ("folder", "role"), GRAPHS, ids=lambda value: getattr(value, "parent", Path(str(value))).name
)
class TestEveryShippedGraph:
    @pytest.mark.parametrize("binary", [True, False], ids=["bytes", "json"])
    def test_its_tensors_are_those_of_onnx_runtime(
        self, shipped_client: Client, folder: Path, role: Role, binary: bool
    ) -> None:
        session = Session(folder / f"{role}.onnx")
        with np.load(folder / GOLDEN_FILE) as golden:
            arrays = {name: golden[f"{role}.{name}"][:3] for name in session.inputs}
        manifest = read_manifest(folder)
        outputs = [triton.InferRequestedOutput(n, binary_data=binary) for n in session.outputs]
        result = shipped_client.infer(
            f"{manifest.name}.{role}",
            inputs_of(arrays, binary=binary),
            model_version=str(manifest.version),
            outputs=outputs,
        )
        assert [told["name"] for told in result.get_response()["outputs"]] == session.outputs
        for name, expected in session.run(arrays).items():
            actual = result.as_numpy(name)
            assert actual.dtype == expected.dtype
            if role == "generate":
                np.testing.assert_array_equal(actual, expected)
            else:  # sums of single precision, whose order may move with the alignment of arrays
                np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    def test_metadata_names_all_tensors(
        self, shipped_client: Client, folder: Path, role: Role
    ) -> None:
        session = Session(folder / f"{role}.onnx")
        metadata = shipped_client.get_model_metadata(f"{folder.parent.name}.{role}")
        assert [tensor["name"] for tensor in metadata["inputs"]] == session.inputs
        assert [tensor["name"] for tensor in metadata["outputs"]] == session.outputs


class TestSameAsOurRoutes:
    def test_generate_is_sample_with_noise_of_ones_own(
        self, shipped_process: Process, shipped_client: Client
    ) -> None:
        rows = seeded_rows(7, 0, 5)
        noise = draw("normal", rows["seed"], rows["index"], (64,))
        result = shipped_client.infer("dcgan-fashion.generate", inputs_of({"noise": noise}))
        with shipped_process.client() as http:
            body = {"model": "dcgan-fashion", "seed": 7, "n": 5, "format": "npy"}
            expected = array(http.post("/sample", json=body))
        pixels = np.rint(result.as_numpy("image")[:, 0] * 255)
        np.testing.assert_array_equal(pixels, expected)

    def test_log_prob_is_that_of_log_prob(
        self, shipped_process: Process, shipped_client: Client
    ) -> None:
        rows = seeded_rows(7, 0, 5)
        noise = draw("uniform", rows["seed"], rows["index"], (1, 28, 28))
        drawn = shipped_client.infer("nade-mnist.generate", inputs_of({"noise": noise}))
        image = drawn.as_numpy("image")
        scored = shipped_client.infer("nade-mnist.log_prob", inputs_of({"image": image}))
        with shipped_process.client() as http:
            response = http.post(
                "/log_prob?model=nade-mnist&format=npy",
                content=npy((image[:, 0] * 255).astype(np.uint8)),
                headers={"Content-Type": "application/x-npy"},
            )
        np.testing.assert_array_equal(scored.as_numpy("log_prob"), array(response))


class TestRequests:
    def test_calls_at_once_get_their_own_rows(self, tiny: Client) -> None:
        asked = [latents(3, seed) for seed in range(12)]
        calls = [tiny.async_infer("tiny-latent.generate", inputs_of(arrays)) for arrays in asked]
        for arrays, call in zip(asked, calls, strict=True):
            alone = tiny.infer("tiny-latent.generate", inputs_of(arrays))
            together = call.get_result()
            np.testing.assert_array_equal(together.as_numpy("image"), alone.as_numpy("image"))

    def test_an_id_is_told_again(self, tiny: Client) -> None:
        arrays = latents(1)
        result = tiny.infer("tiny-latent.generate", inputs_of(arrays), request_id="the id")
        assert result.get_response()["id"] == "the id"
        assert "id" not in tiny.infer("tiny-latent.generate", inputs_of(arrays)).get_response()

    def test_only_outputs_that_are_asked_for_are_told_in_their_order(self, tiny: Client) -> None:
        image = np.zeros((2, 1, HEIGHT, WIDTH), np.float32)
        wanted = ["conditional_log_prob", "log_prob"]
        outputs = [triton.InferRequestedOutput(name) for name in wanted]
        result = tiny.infer("tiny-binary.log_prob", inputs_of({"image": image}), outputs=outputs)
        assert [told["name"] for told in result.get_response()["outputs"]] == wanted
        result = tiny.infer(
            "tiny-binary.log_prob", inputs_of({"image": image}), outputs=outputs[1:]
        )
        assert result.as_numpy("conditional_log_prob") is None
        assert result.as_numpy("log_prob").shape == (2,)

    def test_bytes_and_json_can_be_mixed(self, tiny: Client) -> None:
        image = np.zeros((2, 1, HEIGHT, WIDTH), np.float32)
        outputs = [
            triton.InferRequestedOutput("log_prob", binary_data=False),
            triton.InferRequestedOutput("conditional_log_prob", binary_data=True),
        ]
        inputs = inputs_of({"image": image})
        mixed = tiny.infer("tiny-binary.log_prob", inputs, outputs=outputs)
        plain = tiny.infer("tiny-binary.log_prob", inputs)
        for name in ("log_prob", "conditional_log_prob"):
            np.testing.assert_array_equal(mixed.as_numpy(name), plain.as_numpy(name))

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    @pytest.mark.parametrize("binary", [True, False])
    def test_bodies_may_be_compressed(self, tiny: Client, algorithm: str, binary: bool) -> None:
        arrays = latents(4)
        result = tiny.infer(
            "tiny-latent.generate",
            inputs_of(arrays, binary=binary),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        plain = tiny.infer("tiny-latent.generate", inputs_of(arrays))
        np.testing.assert_array_equal(result.as_numpy("image"), plain.as_numpy("image"))

    def test_what_is_optional_is_neutral_where_it_is_left_out(self, tiny: Client) -> None:
        noise = np.random.default_rng(0).random((8, 1, HEIGHT, WIDTH), dtype=np.float32)
        made = [
            tiny.infer("tiny-binary.generate", inputs_of({"noise": noise} | more)).as_numpy("image")
            for more in (
                {},
                {"temperature": np.ones(8, np.float32)},
                {"temperature": np.full(8, 0.1, np.float32)},
            )
        ]
        np.testing.assert_array_equal(made[0], made[1])
        assert (made[0] != made[2]).any()

    def test_a_label_chooses_the_class(self, tiny: Client) -> None:
        noise = latents(1)["noise"].repeat(3, axis=0)
        arrays = {"noise": noise, "label": np.arange(3)}
        images = tiny.infer("tiny-classes.generate", inputs_of(arrays)).as_numpy("image")
        assert len(np.unique(images.reshape(3, -1), axis=0)) == 3

    @pytest.mark.parametrize("num_samples", [1, 33, 100])
    def test_a_bound_takes_any_number_of_samples(self, tiny: Client, num_samples: int) -> None:
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((2, num_samples, LATENT_DIM), dtype=np.float32)
        image = rng.random((2, 1, HEIGHT, WIDTH), dtype=np.float32)
        result = tiny.infer("tiny-vae.log_prob", inputs_of({"image": image, "noise": noise}))
        weights = result.as_numpy("log_weight")
        assert weights.shape == (2, num_samples)
        expected = np.log(np.exp(weights.astype(float)).mean(axis=1))
        # The answer is single precision.
        np.testing.assert_allclose(result.as_numpy("log_prob"), expected, rtol=1e-6)

    def test_a_likelihood_of_zero_needs_bytes(self, tiny: Client) -> None:
        image = np.zeros((1, 1, HEIGHT, WIDTH), np.float32)
        image[0, 0][NEVER_ON] = 1
        result = tiny.infer("tiny-binary.log_prob", inputs_of({"image": image}))
        assert result.as_numpy("log_prob")[0] == -np.inf
        outputs = [triton.InferRequestedOutput("log_prob", binary_data=False)]
        text = refusal(
            lambda: tiny.infer(
                "tiny-binary.log_prob", inputs_of({"image": image}), outputs=outputs
            ),
            422,
        )
        assert "ask for bytes" in text


class TestErrors:
    def test_an_unknown_model_is_told_with_those_that_there_are(self, tiny: Client) -> None:
        for name in ("tiny-binary", "tiny-latent.log_prob"):
            text = refusal(lambda name=name: tiny.get_model_metadata(name), 404)
            assert repr(name) in text
            assert "tiny-binary.log_prob" in text

    @pytest.mark.parametrize(
        ("arrays", "told"),
        [
            ({"latent": np.zeros((1, 3), np.float32)}, "'latent' is no input.*it takes noise"),
            ({"noise": np.zeros((1, 3))}, "'noise' has datatype FP64, must be FP32"),
            ({"noise": np.zeros((1, 4), np.float32)}, r"\[1, 4\], must be \[-1, 3\]"),
            ({"noise": np.zeros((3,), np.float32)}, r"\[3\], must be \[-1, 3\]"),
            ({"noise": np.zeros((0, 3), np.float32)}, "at least one row"),
            ({"noise": np.full((2, 3), np.nan, np.float32)}, "noise must be finite"),
            ({"noise": np.zeros((101, 3), np.float32)}, "at most 100 rows"),
        ],
    )
    def test_a_tensor_that_does_not_fit_is_told_as_it_should_be(
        self, tiny: Client, arrays: Arrays, told: str
    ) -> None:
        text = refusal(lambda: tiny.infer("tiny-latent.generate", inputs_of(arrays)), 422)
        assert re.search(told, text), text

    @pytest.mark.parametrize("value", [-0.6 / 255, 255.6 / 255])
    def test_real_numbers_end_where_the_last_grey_levels_do(
        self, shipped_client: Client, value: float
    ) -> None:
        arrays: Arrays = {"image": np.full((1, 1, 14, 14), value, np.float32)}
        text = refusal(
            lambda: shipped_client.infer("rnade-fashion14.log_prob", inputs_of(arrays)), 422
        )
        assert "image must be from -0.00196078 to 1.00196" in text

    @pytest.mark.parametrize(
        ("name", "arrays", "told"),
        [
            ("tiny-classes.generate", latents(1), "label is missing"),
            ("tiny-classes.generate", latents(1) | {"label": np.array([3])}, "from 0 to 2"),
            ("tiny-classes.generate", latents(2) | {"label": np.array([0])}, "noise 2, label 1"),
            (
                "tiny-binary.log_prob",
                {"image": np.full((1, 1, HEIGHT, WIDTH), 0.5, np.float32)},
                "must be 0 or 1",
            ),
            (
                "tiny-grey.log_prob",
                {"image": np.full((1, 1, HEIGHT, WIDTH), 255, np.float32)},
                "must be from 0 to 1",
            ),
            (
                "tiny-binary.generate",
                {
                    "noise": np.full((1, 1, HEIGHT, WIDTH), 0.5, np.float32),
                    "temperature": np.zeros(1, np.float32),
                },
                "temperature must be above 0",
            ),
        ],
    )
    def test_a_value_without_a_meaning_is_refused(
        self, tiny: Client, name: str, arrays: Arrays, told: str
    ) -> None:
        assert told in refusal(lambda: tiny.infer(name, inputs_of(arrays)), 422)

    @pytest.mark.parametrize(
        "options",
        [{"priority": 1}, {"sequence_id": 5, "sequence_start": True}, {"parameters": {"a": 1}}],
    )
    def test_parameters_that_mean_nothing_here_are_refused_by_name(
        self, tiny: Client, options: dict[str, Any]
    ) -> None:
        inputs = inputs_of(latents(1))
        text = refusal(lambda: tiny.infer("tiny-latent.generate", inputs, **options), 422)
        assert "not offered here" in text
        assert next(iter(options.get("parameters", options))) in text

    def test_a_deadline_is_kept(self, tiny: Client) -> None:
        endless = inputs_of(steps(10**12))
        text = refusal(lambda: tiny.infer("tiny-slow.generate", endless, timeout=1500), 504)
        assert "1.5 ms" in text
        assert tiny.infer("tiny-slow.generate", inputs_of(steps(0)), timeout=30_000_000)

    def test_outputs_are_checked(self, tiny: Client) -> None:
        def ask(*outputs: triton.InferRequestedOutput) -> None:
            tiny.infer("tiny-latent.generate", inputs_of(latents(1)), outputs=list(outputs))

        output = triton.InferRequestedOutput
        assert "possible: image" in refusal(lambda: ask(output("pixels")), 422)
        assert "asked for twice" in refusal(lambda: ask(output("image"), output("image")), 422)
        assert "classification" in refusal(lambda: ask(output("image", class_count=2)), 422)

    def test_a_body_that_is_too_large_is_refused_compressed_or_not(self, tiny: Client) -> None:
        inputs = inputs_of({"noise": np.zeros((50_000, LATENT_DIM), np.float32)})
        for algorithm in (None, "gzip", "deflate"):
            text = refusal(
                lambda algorithm=algorithm: tiny.infer(
                    "tiny-latent.generate", inputs, request_compression_algorithm=algorithm
                ),
                413,
            )
            assert "200000 bytes" in text

    def test_shared_memory_is_refused(self, tiny: Client) -> None:
        tensor = triton.InferInput("noise", [1, LATENT_DIM], "FP32")
        tensor.set_shared_memory("region", 12)
        text = refusal(lambda: tiny.infer("tiny-latent.generate", [tensor]), 422)
        assert "shared_memory_region" in text

    @pytest.mark.parametrize(
        "call",
        [
            lambda client: client.load_model("tiny-latent"),
            lambda client: client.unload_model("tiny-latent"),
            lambda client: client.get_system_shared_memory_status(),
            lambda client: client.register_system_shared_memory("a", "b", 1),
            lambda client: client.get_cuda_shared_memory_status(),
            lambda client: client.get_trace_settings(),
            lambda client: client.update_trace_settings("tiny-latent.generate"),
            lambda client: client.get_log_settings(),
        ],
    )
    def test_extensions_that_are_not_offered_say_so(
        self, tiny: Client, call: Callable[[Client], object]
    ) -> None:
        text = refusal(lambda: call(tiny), 404)
        assert "not offered" in text or "not loaded or unloaded over HTTP" in text


def test_whichever_process_is_asked_statistics_are_those_of_all(
    start: Callable[..., Process],
) -> None:
    process = start(processes=2, drain_window_s=0)
    with process.ready_client():
        pass
    for _ in range(10):
        with client_of(process) as client:  # each connection may be another process's
            client.infer("tiny-latent.generate", inputs_of(latents(2)))
    with process.client() as http:
        (told,) = answer(http.get("/v2/models/tiny-latent.generate/stats"))["model_stats"]
    assert told["inference_count"] == 20
    assert told["inference_stats"]["success"]["count"] == 10
