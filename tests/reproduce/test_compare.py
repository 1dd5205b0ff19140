"""`compare`: equal terms, ranking, refusals, resume, records taken over, tables, and every form of the report."""

import base64
import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reproduce import compare_jobs, compare_report, runner
from reproduce.compare_terms import NotOffered, Size, make_terms, run_of, size_of_bits, size_of_wcr, uniform_bytes

QUICK = ["--here", "--epochs", "1", "--trainer.limit_train_batches", "3", "--data.subset", "192"]
CONTRACT = {
    *("method", "seed", "float_top1", "top1", "wcr", "acr", "packed_bytes", "bitops", "step_ratio"),
    *("peak_memory_bytes", "policy", "record"),
}


@pytest.fixture
def compare(folders, start_weights, capfd, monkeypatch):
    """compare("--methods", "lsq", ...) -> (status, stdout, stderr): 3 steps from untrained weights, no pictures."""
    from reproduce import compare_pictures
    from reproduce.cli import main

    monkeypatch.setattr(compare_pictures, "draw", lambda report, out: [])

    def call(*arguments, quick=True):
        capfd.readouterr()
        short = [*QUICK, "--model.weights", str(start_weights)] if quick else []
        status = main(["compare", *arguments, *short])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def report(tmp_path_factory, start_weights):
    """(folder, JSON, status) of LSQ and PACT at 4/4 and 1/4; LSQ has no single bit."""
    from reproduce.cli import main

    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEDGER_DIR", str(folder / "ledger"))
        patch.setenv("RUNS_DIR", str(folder / "runs"))
        arguments = ["--methods", "lsq,pact", "--bits", "4/4,1/4", "--out", str(folder / "out")]
        arguments += ["--json", str(folder / "compare.json"), "--model.weights", str(start_weights)]
        status = main(["compare", *arguments, *QUICK])
    return folder, json.loads((folder / "compare.json").read_text()), status


@pytest.fixture
def entry(report):
    """entry(method="lsq", seed=0, **changes of the record) -> an Entry of the 4/4 run; nested keys as a__b."""

    def make(method="lsq", seed=0, **changes):
        found = next(line for line in report[1] if line["method"] == method and line["record"])
        record = json.loads(Path(found["record"]).read_text())
        for name, value in changes.items():
            *path, last = name.split("__")
            part = record
            for key in path:
                part = part[key]
            part[last] = value
        return compare_jobs.Entry(method, method, "4/4", seed, "finished", record=record, how="ran")

    return make


@pytest.fixture
def layers():
    from hardware import network

    return network("digits_net").layers


SIZE = Size("4/4", 4, 4, 9680, 7.808)


def groups(entries, constraint=None):
    from hardware import parse_constraint

    costs = compare_report.Costs.of("bitfusion", constraint and parse_constraint(constraint))
    (group,) = compare_report.make_groups(entries, [SIZE], costs, equal=constraint is None)
    return group


# -- the report -------------------------------------------------------------------------------------------------------


def test_json_has_what_the_contract_names_and_equal_terms(report, start_weights):
    from common.models import build_model, load_weights, state_hash

    _, lines, status = report
    assert status == 0
    assert len(lines) == 4
    assert all(set(line) >= CONTRACT for line in lines)
    finished = [line for line in lines if line["state"] == "finished"]
    assert {(line["method"], line["size"]) for line in finished} == {("lsq", "4/4"), ("pact", "4/4"), ("pact", "1/4")}
    network = build_model("digits_net")
    load_weights(network, start_weights)
    assert {line["start_weights"] for line in finished} == {state_hash(network)}
    assert {line["packed_bytes"] for line in finished if line["size"] == "4/4"} == {9680}
    assert len({line["float_top1"] for line in finished}) == 1
    assert min(line["rank"] for line in finished if line["size"] == "4/4") == 1
    assert all(line["policy"]["conv2.weight"] == int(line["size"][0]) for line in finished)
    assert all(line["step_ratio"] is None for line in lines)  # measured by --bench alone
    assert all(line["peak_memory_bytes"] is None for line in lines)  # several runs in one process
    assert all(Path(line["record"]).is_file() for line in finished)


def test_a_width_that_a_method_lacks_is_not_offered_and_the_others_go_on(report):
    (lsq,) = [line for line in report[1] if line["method"] == "lsq" and line["size"] == "1/4"]
    assert lsq["state"] == "not offered"
    assert "not offered at 1/4: LSQ" in lsq["reason"]
    assert lsq["top1"] is None


def test_markdown_tables_are_whole(report):
    text = (report[0] / "out" / "compare.md").read_text()
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.M)
    assert len(tables) == 2
    for table in tables:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        assert {len(row) for row in rows} == {17}
        assert [cell.strip() for cell in rows[0]][:4] == ["rank", "method", "float", "top-1 %"]
        assert len(rows) == 4  # header, rule, two methods


def test_csv_has_a_line_a_method_and_size_with_unrounded_numbers(report):
    lines = list(csv.DictReader(io.StringIO((report[0] / "out" / "compare.csv").read_text())))
    assert len(lines) == 4
    by_name = {(line["method"], line["size"]): line for line in lines}
    of_json = {(line["method"], line["size"]): line for line in report[1]}
    assert float(by_name["pact", "1/4"]["top1"]) == of_json["pact", "1/4"]["top1"]
    assert float(by_name["lsq", "4/4"]["bitops"]) == 8_867_840  # 64 x (9,216 + 320) + 16 x 516,096 MACs
    assert by_name["lsq", "1/4"]["top1"] == ""
    assert by_name["lsq", "4/4"]["top1_std"] == ""  # one seed
    assert float(by_name["lsq", "4/4"]["top1_sampling_error"]) > 0


class Page(HTMLParser):
    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.addresses, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_loads_nothing_and_tells_where_numbers_come_from(report):
    text = (report[0] / "out" / "compare.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for address in page.addresses:
        assert base64.b64decode(address.partition(",")[2]).startswith(b"\x89PNG")
    assert "http" not in text
    shown = " ".join(page.text)
    record = json.loads(Path(report[1][0]["record"]).read_text())
    for fact in (record["start_weights"], record["data"]["fingerprint"], record["finished"], "differentiate_max"):
        assert fact in shown
    assert "learning_rate_schedule cosine" in shown


def test_pictures_are_drawn_of_what_there_is(report):
    names = {path.name for path in (report[0] / "out").glob("*.png")}
    assert names == {"pareto_wcr.png", "pareto_bitops.png", "training_4_4.png", "training_1_4.png"}  # no mixed widths


def test_text_of_a_terminal_says_what_is_compared_and_how_sure_it_is(report, entry):
    group = groups([entry(), entry("pact", cells__top1=5.0)])
    costs = compare_report.Costs.of("bitfusion")
    text = compare_report.text(compare_report.Report("title", {"data": "digits"}, (group,), costs))
    assert "4/4: 9,680 bytes of weights (WCR 7.81)" in text
    assert "latency ms" in text and "energy mJ" in text
    assert re.search(r"lsq +\d+\.\d\d +\d+\.\d\d \[± \d\.\d\d\]", text)  # one seed: the sampling error


# -- ranking and refusals ---------------------------------------------------------------------------------------------


def test_seeds_are_averaged_and_ranked_with_the_error_of_the_difference(entry):
    top1 = {"lsq": (90.0, 91.0, 92.0), "pact": (89.0, 91.0, 90.0)}
    group = groups([entry(m, seed, cells__top1=v) for m, values in top1.items() for seed, v in enumerate(values)])
    first, second = group.lines
    assert (first.method, first.rank, second.rank) == ("lsq", 1, 2)
    assert compare_report.accuracy_text(first) == "91.00 ± 1.00 (n=3)"
    assert second.behind == pytest.approx((-1.0, (2 / 3) ** 0.5))
    assert "lsq before pact by 1.00 points, ± 0.82: no difference is shown" in compare_report.verdict(group)


def test_a_difference_beyond_twice_its_error_is_called_one(entry):
    top1 = {"lsq": (90.0, 90.1), "pact": (80.0, 80.1)}
    group = groups([entry(m, seed, cells__top1=v) for m, values in top1.items() for seed, v in enumerate(values)])
    assert compare_report.verdict(group) == "4/4: lsq before pact by 10.00 points, ± 0.07."


@pytest.mark.parametrize(
    "num_bytes, refused", [(9680, False), (9873, False), (9874, True), (9487, False), (9480, True)]
)
def test_a_size_that_differs_by_over_two_percent_is_refused(entry, num_bytes, refused):
    group = groups([entry(), entry("pact", packed__codes_bytes=num_bytes)])
    pact = next(line for line in group.lines if line.method == "pact")
    assert bool(pact.reason) == bool(refused)
    assert bool(pact.rank) != bool(refused)
    if refused:
        assert f"refused: {num_bytes:,} bytes of weights, 4/4 has 9,680" in pact.reason
        assert pact.numbers  # shown all the same


def test_float_layers_count_as_float(entry):
    record = entry().record
    sites = {name: bits for name, bits in record["policy"].items() if name != "conv1.weight"}
    group = groups([entry(policy=sites, packed__codes_bytes=9680 - 144)])
    assert group.lines[0].numbers[0].packed_bytes == 9680 - 144 + 4 * 144


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"start_weights": "0" * 16}, "start weights 0000000000000000, the others"),
        ({"data__fingerprint": "f"}, "data f, the others"),
        ({"batch_size": 128}, "batch size 128, the others 64"),
        ({"epochs_done": 7.0}, "epochs 7, the others"),
        ({"state": "rehearsed", "reason": "trainer.limit_val_batches was set"}, "rehearsed: trainer.limit_val_batches"),
    ],
)
def test_records_on_other_terms_are_refused(entry, change, reason):
    group = groups([entry(), entry("pact", **change), dataclasses.replace(entry(), label="third")])
    pact = next(line for line in group.lines if line.method == "pact")
    assert reason in pact.reason
    assert pact.rank == 0
    assert [line.rank for line in group.lines] == [1, 1, 0]  # equal accuracies, equal ranks


def test_under_a_constraint_the_limit_counts_and_not_the_size(entry):
    group = groups([entry(), entry("pact", packed__codes_bytes=20_000)], "bitops<=9M")
    assert all(line.rank for line in group.lines)
    group = groups([entry()], "bitops<=8M")
    assert group.lines[0].reason == "over the limit: 8.868e+06, bitops<=8M"
    assert compare_report.verdict(group) == "4/4: no row can be ranked."


def test_a_record_without_a_number_is_a_reason(entry):
    record = entry("pact").record
    cells = {name: value for name, value in record["cells"].items() if name != "top1"}
    group = groups([entry(), entry("pact", cells=cells)])
    assert group.lines[1].reason == "its record has no top1"


# -- terms ------------------------------------------------------------------------------------------------------------


def test_sizes_of_the_digits_network(layers):
    assert uniform_bytes(layers, 2, "same") == 4724  # 18,896 weights, four a byte
    assert uniform_bytes(layers, 4, "8bit") == 9680
    assert uniform_bytes(layers, 4, "float") == 11_072  # 9,216 + 4 x 464
    size = size_of_bits(layers, "1/32", "same")
    assert (size.num_bytes, size.wcr, size.activation_bits, size.name) == (2362, 32.0, 32, "w1a32")


def test_a_rate_takes_the_width_that_has_it_within_two_percent(layers):
    assert size_of_wcr(layers, 16, 4, "same").weight_bits == 2
    assert size_of_wcr(layers, 16.3, 4, "same").weight_bits == 2
    assert size_of_wcr(layers, 13, 4, "same").weight_bits is None


def test_mixed_precision_gets_the_size_of_the_uniform_policy(layers):
    size = size_of_bits(layers, "2/2", "8bit")
    model = run_of("hmq", make_terms("digits_net", "digits"), size, None)["config"]["model"]
    assert model["target_wcr"] == pytest.approx(4 * 18_896 / uniform_bytes(layers, 2, "8bit"))
    assert model["target_acr"] == 16
    assert model["budget_repair"] is True
    assert model["learning_rate"] == 1e-3
    assert "optimizer" not in model and "first_last" not in model  # it has no such arguments


def test_terms_reach_a_method_by_the_names_of_its_arguments(layers):
    terms = make_terms("digits_net", "digits", "float", 5, settings={"model.learning_rate": 0.5, "data.subset": 192})
    run = run_of("lsq", terms, size_of_bits(layers, "2/3", "float"), "file")
    model = run["config"]["model"]
    assert {name: model[name] for name in ("weight_bit_width", "activation_bit_width", "first_last", "optimizer")} == {
        "weight_bit_width": 2, "activation_bit_width": 3, "first_last": "float", "optimizer": "radam",
    }  # fmt: skip
    assert (model["learning_rate"], model["weights"]) == (0.5, "file")
    assert run["config"]["trainer"] == {"max_epochs": 5}
    assert run["config"]["data"] == {"class_path": "data.DigitsData", "init_args": {"batch_size": 64, "subset": 192}}


def test_a_constraint_takes_the_place_of_the_rate(layers):
    terms = make_terms("digits_net", "digits", constraint="bitops<=9M")
    model = run_of("hmq", terms, size_of_bits(layers, "4/4", "8bit"), None)["config"]["model"]
    assert (model["constraint"], model["target_wcr"]) == ("bitops<=9M", None)


@pytest.mark.parametrize(
    "method, bits, first_last, reason",
    [
        ("_template", "4/4", "same", "no argument activation_bit_width or target_acr: W/32"),
        ("hmq", "4/32", "same", "quantizes activations too"),
        ("uniform", "4/4", "float", "keeps no layer in float"),
    ],
)
def test_what_a_method_cannot_be_told_is_not_offered(layers, method, bits, first_last, reason):
    terms = make_terms("digits_net", "digits", first_last)
    with pytest.raises(NotOffered, match=reason):
        run_of(method, terms, size_of_bits(layers, bits, first_last), None)


def test_settings_equal_those_of_the_rows_on_equal_terms():
    """So that records of the table are taken over."""
    from hardware import network
    from reproduce.settings import resolve
    from reproduce.tables import load_table

    table = load_table("lecture/cifar10_equal_terms")
    for row, bits in (("lsq_w2a2", "2/2"), ("pact_w4a4", "4/4")):
        size = size_of_bits(network("resnet20").layers, bits, "8bit")
        run = run_of(table.row(row).run["method"], make_terms("resnet20", "cifar10", epochs=3), size, None)
        own, _ = compare_jobs.own_table("t", "cifar10", [{"name": "r", "method": "m", "model": "resnet20", "run": run}])
        assert resolve(own, own.row("r")).hash() == resolve(table, table.row(row)).hash()


# -- runs -------------------------------------------------------------------------------------------------------------


def test_finished_runs_are_not_repeated_and_records_elsewhere_are_taken_over(compare, folders):
    status, out, err = compare("--methods", "uniform", "--record", "mine")
    assert (status, err) == (0, "")
    record = folders[0] / "compare" / "mine" / "uniform_w4a4" / "seed0.json"
    before = record.read_text()
    assert "ledger/compare/mine/uniform_w4a4/seed0.json" in out
    _, out, _ = compare("--methods", "uniform", "--record", "mine")
    assert "finished before:" in out
    status, out, _ = compare("--methods", "uniform", "--json", "-")
    assert status == 0
    assert "taken over" in out
    assert json.loads(out[out.index("[\n {") :])[0]["how"] == "taken over"
    assert record.read_text() == before
    assert not list((folders[1] / "compare").glob("digits_net_digits/uniform*/seed0/record.json"))
    _, out, _ = compare("--methods", "uniform", "--force")
    assert "recorded in" in out


def test_a_run_taken_over_into_the_ledger_stays_there(compare, folders):
    compare("--methods", "uniform")
    _, out, _ = compare("--methods", "uniform", "--record", "kept")
    assert "taken over" in out
    record = json.loads((folders[0] / "compare" / "kept" / "uniform_w4a4" / "seed0.json").read_text())
    assert (record["table"], record["row"], record["state"]) == ("kept", "uniform_w4a4", "measured")


def test_an_interrupted_comparison_goes_on_where_it_was(compare, folders, monkeypatch):
    from reproduce.callbacks import AtomicCheckpoint

    kept = AtomicCheckpoint.on_train_batch_end

    def interrupted(self, trainer, module, *rest):
        kept(self, trainer, module, *rest)
        if type(module).__name__ == "PACT" and module.step == 2:
            raise KeyboardInterrupt

    arguments = ("--methods", "lsq,pact", "--checkpoint-every", "1")
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpoint, "on_train_batch_end", interrupted)
        status, out, err = compare(*arguments)
    assert status == 130
    assert "goes on from the last checkpoint" in err
    status, out, _ = compare(*arguments)
    assert status == 0
    assert "lsq 4/4, seed 0: finished before:" in out
    assert "resuming after step 2" in out
    (path,) = (folders[1] / "compare" / "digits_net_digits").glob("pact*/seed0/record.json")
    assert json.loads(path.read_text())["resumed_at"] == [2]


def test_a_method_that_fails_leaves_its_reason_and_status_1(compare, monkeypatch):
    fit = runner._fit

    def failing(trainer, module, *rest):
        if type(module).__name__ == "PACT":
            raise RuntimeError("diverged\nin step 3")
        fit(trainer, module, *rest)

    monkeypatch.setattr(runner, "_fit", failing)
    status, out, err = compare("--methods", "pact,uniform")
    assert status == 1
    assert "failed: diverged in step 3" in out
    assert "error: pact 4/4: failed: diverged in step 3" in err
    assert re.search(r"^  1 +uniform", out, re.M)


def test_other_start_weights_are_refused_before_anything_runs(compare, monkeypatch):
    from methods.pact import PACT

    insert = PACT.insert

    def changed(self, chosen):
        insert(self, chosen)
        self.start_weights = "f" * 16

    monkeypatch.setattr(PACT, "insert", changed)
    monkeypatch.setattr(compare_jobs, "run_row", None)  # nothing is to run
    status, out, _ = compare("--methods", "pact")
    assert status == 0
    assert "refused: start weights ffffffffffffffff, the others" in out


def test_without_weights_a_float_network_is_trained_once(compare, folders):
    arguments = ["--methods", "uniform", "--here", "--epochs", "1", "--trainer.limit_train_batches", "1"]
    status, out, _ = compare(*arguments, quick=False)
    assert status == 0
    assert "float network, seed 0: trained first" in out
    (file,) = folders[1].rglob("weights.safetensors")
    before = file.stat().st_mtime_ns
    status, out, _ = compare(*arguments, "--epochs", "2", quick=False)
    assert status == 0
    assert "trained first" not in out
    assert file.stat().st_mtime_ns == before


def test_every_run_has_a_process_of_its_own(compare, start_weights, folders):
    arguments = ["--methods", "uniform", "--epochs", "1", "--trainer.limit_train_batches", "1", "--json", "-"]
    status, out, _ = compare(*arguments, "--model.weights", str(start_weights), quick=False)
    assert status == 0
    (line,) = json.loads(out[out.index("[\n {") :])
    assert line["peak_memory_bytes"] > 10_000_000
    assert "0/1" in out  # the bar over runs


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name methods with --methods"),
        (["--methods", "nothing"], "unknown method 'nothing'"),
        (["--methods", "full_precision"], "the start of every row"),
        (["--methods", "lsq", "--bits", "2"], "--bits takes W/A"),
        (["--methods", "lsq", "--bits", "9/2"], "weights have 1 to 8 bits"),
        (["--methods", "lsq", "--bits", "2/2", "--target-wcr", "8"], "both say the size"),
        (["--methods", "lsq", "--activation-bits", "4"], "goes with --target-wcr"),
        (["--methods", "lsq", "--target-wcr", "-1"], "positive rate"),
        (["--methods", "lsq", "--data", "digit"], "unknown data set"),
        (["--methods", "lsq", "--model", "resnet20"], "digits has images of 1x8x8, resnet20 takes 3x32x32"),
        (["--methods", "lsq", "--model", "resnet_20"], "resnet_20"),
        (["--methods", "lsq", "--target", "tpu"], "unknown target 'tpu'"),
        (["--methods", "lsq", "--constraint", "latency<5"], "is not of the form"),
        (["--methods", "lsq", "--model.learning_rat", "1"], "no method here has an argument 'learning_rat'"),
        (["--methods", "lsq", "--model.learning_rate", "fast"], "learning_rate"),
        (["--methods", "lsq", "--trainer.max_epoch", "1"], "max_epoch"),
        (["--methods", "lsq", "--seeds", "a"], "--seeds takes"),
        (["--methods", "lsq", "--seeds", "0"], "--seeds takes"),
        (["--methods", "lsq", "--rows", "a"], "--rows goes with a table"),
        (["--methods", "lsq", "--record", "a/b"], "--record"),
        (["--methods", "lsq", "--model.weights", "no.th"], "no.th"),
        (["hmq/digits", "--methods", "lsq"], "settings of their own"),
        (["hmq/digit"], "unknown table"),
        (["hmq/digits", "--rows", "a"], "has no row 'a'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(compare, arguments, message):
    status, _, err = compare(*arguments, quick=False)
    assert status == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_list_names_methods_with_kind_and_widths(compare):
    status, out, _ = compare("--list", "--methods", "hmq,lsq", quick=False)
    assert status == 0
    assert re.search(r"hmq +trainer .*\[target_wcr, target_acr, constraint\]", out)
    assert re.search(r"lsq +trainer .*\[weight_bit_width, activation_bit_width\]", out)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_shows_its_records_and_what_has_not_run(compare, folders, start_weights):
    rows = ["hmq/digits", "--rows", "uniform_w2_acr4,uniform_w3_acr4"]
    status, out, _ = compare(*rows, quick=False)
    assert status == 0
    assert "not run: python -m reproduce run hmq/digits --rows uniform_w2_acr4" in out
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--data.subset", "192"]
    short += ["--model.weights", str(start_weights), "--here"]
    status, out, _ = compare("hmq/digits", "--rows", "uniform_w2_acr4", "--run", *short, quick=False)
    assert status == 0
    assert (folders[0] / "hmq" / "digits" / "uniform_w2_acr4" / "seed0.json").is_file()
    status, out, _ = compare(*rows, "--json", "-", quick=False)
    lines = {line["size"]: line for line in json.loads(out[out.index("[\n {") :])}
    assert lines["2/8"]["rank"] == 1
    assert (lines["2/8"]["packed_bytes"], lines["2/8"]["notes"]) == (4724, "")
    assert (lines["3/8"]["state"], lines["3/8"]["top1"]) == ("not run", None)


def test_rows_of_a_rate_stand_beside_the_uniform_width_of_their_size(compare):
    status, out, _ = compare("hmq/digits", quick=False)
    assert status == 0
    assert re.findall(r"^(\S+): [\d,]+ bytes", out, re.M) == ["3/8", "2/8"]
    assert out.count("  -     HMQ ") == 2


def test_stale_records_are_marked(compare, folders, start_weights):
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--model.weights", str(start_weights)]
    compare("hmq/digits", "--rows", "uniform_w2_acr4", "--run", "--here", *short, quick=False)
    path = folders[0] / "hmq" / "digits" / "uniform_w2_acr4" / "seed0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_hash": "of other code"}))
    status, out, _ = compare("hmq/digits", "--rows", "uniform_w2_acr4", quick=False)
    assert status == 0
    assert "stale (changed since: code)" in out
