"""The dashboards, as code: `python3 deploy/grafana/dashboards.py` writes dashboards/*.json. Change them here; a test compares."""

import json
from pathlib import Path

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Grafana's grid is 24 wide.
HEIGHT = 8


def panel(title, *queries, unit="short", width=12, kind="timeseries", about="", **defaults):
    """`queries` are (PromQL, legend)."""
    targets = [
        {"refId": chr(ord("A") + at), "expr": expr, "legendFormat": legend, "datasource": SOURCE, "exemplar": "_bucket" in expr}
        for at, (expr, legend) in enumerate(queries)
    ]
    return {
        "title": title, "description": about, "type": kind, "datasource": SOURCE, "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, **defaults}, "overrides": []},
        "gridPos": {"w": width, "h": HEIGHT if kind == "timeseries" else 4},
    }


def stat(title, expr, unit="short", **keys):
    return panel(title, (expr, ""), unit=unit, width=6, kind="stat", **keys)


def quantiles(metric, where, by, legend):
    return [
        (f"histogram_quantile({q / 100}, sum by ({by}le) (rate({metric}_bucket{{{where}}}[$__rate_interval])))", f"p{q} {legend}".strip())
        for q in (50, 95, 99)
    ]


def rate(metric, where="", by="", interval="$__rate_interval"):
    return f"sum by ({by}) (rate({metric}{{{where}}}[{interval}]))"


def mean(metric, where, by):
    return f"{rate(metric + '_sum', where, by)} / {rate(metric + '_count', where, by)}"


def variable(name, query, label):
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name},
        "refresh": 2, "sort": 1, "includeAll": name != "model", "multi": name != "model",
        "current": {} if name == "model" else {"text": "All", "value": "$__all"},
    }


JOB = variable("job", "label_values(sconce_build_info, job)", "Job")
MODEL = variable("model", 'label_values(sconce_rows_total{job=~"$job"}, model)', "Model")


def dashboard(name, title, about, variables, panels):
    x = y = row = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, row = 0, y + row, 0
        one["id"], place["x"], place["y"] = number, x, y
        x, row = x + place["w"], max(row, place["h"])
    others = {"title": "Sconce", "type": "dashboards", "tags": ["sconce"], "asDropdown": True, "keepTime": True, "includeVars": True}
    return name, {
        "uid": f"sconce-{name}", "title": f"Sconce: {title}", "description": about, "tags": ["sconce"], "editable": False,
        "schemaVersion": 39, "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser", "links": [others],
        "templating": {"list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}, *variables]},
        "panels": panels,
    }


ours = 'job=~"$job"'
one = ours + ', model="$model"'
failed = ours + ', outcome="failed"'
owed = ours + ', outcome!="refused"'
answered = ours + ', status="ok"'
one_asked = one + ', status!="invalid"'
one_invalid = one + ', status="invalid"'
one_answered = one + ', status="ok"'
one_deferred = one + ', decision="deferred"'

DASHBOARDS = [
    dashboard("overview", "overview", "Are callers served?", [JOB], [
        stat("Servers that answer", f"sum(up{{{ours}}})"),
        stat("Versions in memory", f"count(count by (model, version) (sconce_rows_total{{{ours}}}))"),
        stat("Requests a second", f"sum(rate(sconce_requests_total{{{ours}}}[$__rate_interval]))", "reqps"),
        stat("Alerts that fire", f'count(ALERTS{{{ours}, alertname=~"Sconce.+", alertstate="firing"}}) or vector(0)'),
        panel("Requests by model", (rate("sconce_requests_total", ours, "model"), "{{model}}"), unit="reqps",
              about="As callers see it: also those that found no version in memory."),
        panel("Requests by outcome", (rate("sconce_predictions_total", ours, "status"), "{{status}}"), unit="reqps",
              about="Of versions in memory, steps of ensembles too. invalid: the caller's mistake. rejected: no room. canceled: late, or the"
              " caller gave up. failed: the model."),
        panel("Share of requests with an error", (
            f'{rate("sconce_requests_total", failed, "model")} / {rate("sconce_requests_total", owed, "model")}',
            "{{model}}"), unit="percentunit", about="The objective is 0.1 % over a month; what the caller got wrong is left out."),
        panel("Time to the answer", *quantiles("sconce_request_duration_seconds", ours, "", ""), unit="s"),
        panel("p99 by model", (
            f"histogram_quantile(0.99, {rate('sconce_request_duration_seconds_bucket', ours, 'model, le')})", "{{model}}"), unit="s"),
        panel("How fast error budgets are spent", (f"max by (model, slo) (sconce:slo_burn:rate1h{{{ours}}})", "{{model}}: {{slo}}"),
              about="Over an hour; 1 is as fast as the objective allows. By the recording rules."),
        panel("Requests that wait", (f"sum by (model) (sconce_queue_depth{{{ours}}})", "{{model}}")),
        panel("Refused before any model was known", (rate("sconce_rejected_requests_total", ours, "reason"), "{{reason}}"), unit="reqps"),
        panel("Requests by tenant", (rate("sconce_tenant_requests_total", ours, "tenant, status"), "{{tenant}}: {{status}}"), unit="reqps"),
        panel("Events to webhooks", (rate("sconce_webhook_events_total", ours, "hook, status"), "{{hook}}: {{status}}"), unit="ops",
              about="Written: its receiver took it. What failed or was dropped is not sent again."),
    ]),
    dashboard("model", "model", "Where does a model's time go?", [JOB, MODEL], [
        stat("Versions in memory", f"count(count by (version) (sconce_rows_total{{{one}}}))"),
        stat("Rows a second", f"sum(rate(sconce_rows_total{{{one}}}[$__rate_interval]))", "rowsps"),
        stat("Memory of its weights", f"sum(sconce_model_memory_bytes{{{one}}})", "bytes"),
        stat("Panics survived", f"sum(sconce_model_panics_total{{{one}}})"),
        panel("Requests by version and outcome", (rate("sconce_predictions_total", one, "version, status"), "{{version}}: {{status}}"), unit="reqps"),
        panel("Time to the answer", *quantiles("sconce_request_duration_seconds", one, "", ""), unit="s",
              about="Points are requests whose trace was kept: they lead to it."),
        panel("Mean time by stage", *[
            (mean(f"sconce_{stage}_duration_seconds", one, "job"), stage) for stage in ("prepare", "queue", "execute")
        ], unit="s"),
        panel("p99 by stage", *[
            (f"histogram_quantile(0.99, {rate(f'sconce_{stage}_duration_seconds_bucket', one, 'le')})", stage)
            for stage in ("prepare", "queue", "execute")
        ], unit="s"),
        panel("Waiting, and being worked on",
              (f"sum(sconce_queue_depth{{{one}}})", "waiting"), (f"sum(sconce_inflight_requests{{{one}}})", "in flight")),
        panel("Refused by the queue", (rate("sconce_queue_refusals_total", one, "reason"), "{{reason}}"), unit="reqps"),
        panel("Rows in a batch", *quantiles("sconce_batch_rows", one, "", ""), (mean("sconce_batch_rows", one, "job"), "mean")),
        panel("Why batches were closed", (rate("sconce_batches_closed_total", one, "reason"), "{{reason}}"), unit="ops"),
        panel("Tokens in a batch", (mean("sconce_batch_tokens", one, "version"), "{{version}}"),
              (mean("sconce_batch_padding_tokens", one, "version"), "{{version}}: padding"), about="Text models alone."),
        panel("What a batch takes, as learned", (f"max by (version) (sconce_cost_batch_seconds{{{one}}})", "{{version}}: each"),
              (f"max by (version) (sconce_cost_row_seconds{{{one}}})", "{{version}}: a row more"),
              (f"max by (version) (sconce_cost_token_seconds{{{one}}})", "{{version}}: a token more"), unit="s"),
        panel("How far estimates are off", (f"max by (version) (sconce_cost_relative_error{{{one}}})", "{{version}}"), unit="percentunit"),
        panel("Answers from the cache", (
            f"{rate('sconce_cache_hits_total', one, 'version')} / ({rate('sconce_cache_hits_total', one, 'version')}"
            f" + {rate('sconce_cache_misses_total', one, 'version')})", "{{version}}"), unit="percentunit",
            about="Models with a response cache alone."),
        panel("Share of answers that people decide", (
            f"{rate('sconce_review_decisions_total', one_deferred, 'version')}"
            f" / {rate('sconce_review_decisions_total', one, 'version')}", "{{version}}"), unit="percentunit",
            about="Versions that leave something to people alone."),
        panel("What waits for people", (f"sum(sconce_review_queue_depth{{{one}}})", "predictions"),
              (f"max(sconce_review_oldest_seconds{{{one}}}) / 3600", "hours that the oldest has waited")),
        panel("What became of reviews", (rate("sconce_reviews_total", ours, "result"), "{{result}}"), unit="ops", about="Of all models."),
    ]),
    dashboard("rollout", "rollout", "Is the new version as good as the old one?", [JOB, MODEL], [
        panel("Share of requests by version", (
            f"{rate('sconce_predictions_total', one, 'version')} / ignoring(version) group_left() {rate('sconce_predictions_total', one)}",
            "{{version}}"), unit="percentunit", max=1),
        panel("Share of errors by version", (
            f'1 - {rate("sconce_predictions_total", one_answered, "version")}'
            f' / {rate("sconce_predictions_total", one_asked, "version")}', "{{version}}"), unit="percentunit"),
        panel("p50 by version", (
            f"histogram_quantile(0.5, {rate('sconce_request_duration_seconds_bucket', one, 'version, le')})", "{{version}}"), unit="s"),
        panel("p99 by version", (
            f"histogram_quantile(0.99, {rate('sconce_request_duration_seconds_bucket', one, 'version, le')})", "{{version}}"), unit="s"),
        panel("Mean time in the model by version", (mean("sconce_execute_duration_seconds", one, "version"), "{{version}}"), unit="s"),
        panel("Panics by version", (f"sum by (version) (increase(sconce_model_panics_total{{{one}}}[$__rate_interval]))", "{{version}}")),
        panel("Changes of what answers", (f"max by (instance) (sconce_routing_generation{{{ours}}})", "{{instance}}"),
              about="Each promotion, rollback or removal is a step. All servers of one registry are to show the same."),
        panel("Loads", (f"sum by (status) (increase(sconce_loads_total{{{ours}}}[$__rate_interval]))", "{{status}}")),
        panel("Time to load a version, p95", (
            f"histogram_quantile(0.95, {rate('sconce_load_duration_seconds_bucket', answered, 'le', '$__range')})", "p95"), unit="s"),
        panel("Requests by variant", (rate("sconce_variant_requests_total", one, "variant, status"), "{{variant}}: {{status}}"), unit="reqps",
              about="Of models with a route alone."),
        panel("p99 by variant", (
            f"histogram_quantile(0.99, {rate('sconce_variant_request_duration_seconds_bucket', one, 'variant, le')})", "{{variant}}"), unit="s"),
        panel("What became of shadows' requests", (rate("sconce_shadow_compared_total", one, "variant"), "{{variant}}: compared"),
              (rate("sconce_shadow_dropped_total", one, "variant, reason"), "{{variant}}: dropped, {{reason}}"),
              (rate("sconce_shadow_failed_total", one, "variant, status"), "{{variant}}: failed, {{status}}"), unit="reqps"),
        panel("Share of shadows' answers that disagree", (
            f'{rate("sconce_shadow_disagreed_total", one, "variant")} / {rate("sconce_shadow_compared_total", one, "variant")}',
            "{{variant}}"), unit="percentunit", about="`sconce shadow report` says which, and by how much."),
        panel("Where rollouts stand", (f"sconce_rollout_percent{{{one}}}", "{{instance}}: the candidate's percent"),
              (f"sconce_rollout_stage{{{one}}}", "{{instance}}: stage"), (f"sconce_rollout_blocked{{{one}}}", "{{instance}}: kept from going on")),
        panel("What each version is", (
            f"max by (version, family, precision, device, instances) (sconce_model_info{{{one}}})",
            "{{version}}: {{family}}, {{precision}} on {{device}}, {{instances}} instances")),
    ]),
    dashboard("drift", "drift", "Has what callers send, or models answer, changed?", [JOB, MODEL], [
        panel("How watched versions stand", (f"sconce_drift_state{{{one}}}", "version {{version}}: {{state}}"),
              about="By `sconce monitor`: drifted until it is shown to be stable. `sconce drift report` says all of it."),
        panel("How far features are from the reference", (f"topk(10, sconce_drift_psi{{{one}}})", "version {{version}}: {{feature}}"),
              about="The stability index less what chance adds: 0.1 is a change that one looks at, 0.25 a large one."),
        panel("Accuracy, by labels", (f"sconce_accuracy_ratio{{{one}}}", "version {{version}}"),
              (f"sconce_accuracy_baseline_ratio{{{one}}}", "version {{version}}: expected"), unit="percentunit",
              about="Of the latest cohort whose labels had time to come. `sconce feedback performance` says all of it."),
        panel("Mean absolute error, by labels", (f"sconce_mean_absolute_error{{{one}}}", "version {{version}}"),
              (f"sconce_mean_absolute_error_baseline{{{one}}}", "version {{version}}: expected")),
        panel("Share of predictions with a label", (f"sconce_label_coverage_ratio{{{one}}}", "version {{version}}"), unit="percentunit",
              about="Of the predictions of that cohort which were noted."),
        panel("Share of requests that do not fit the signature", (
            f'{rate("sconce_predictions_total", one_invalid, "model")} / {rate("sconce_predictions_total", one, "model")}',
            "{{model}}"), unit="percentunit", about="A caller that was changed often shows here first."),
        panel("Rows in a request", (
            f"{rate('sconce_rows_total', one, 'model')} / {rate('sconce_predictions_total', one_answered, 'model')}", "{{model}}")),
        panel("Tokens in a row", (f"{rate('sconce_tokens_total', one, 'model')} / {rate('sconce_rows_total', one, 'model')}", "{{model}}"),
              about="Texts that get longer or shorter."),
        panel("Requests, now and a day ago", (rate("sconce_predictions_total", one, "model"), "now"),
              (f"sum by (model) (rate(sconce_predictions_total{{{one}}}[$__rate_interval] offset 1d))", "a day ago"), unit="reqps"),
        panel("Answers that were no number, or failed otherwise", (rate("sconce_predictions_total", one + ', status="failed"', "version"), "{{version}}"),
              unit="reqps", about="Inputs far from what a model was trained on can end so."),
        panel("Mean time in the model, now and a day ago", (mean("sconce_execute_duration_seconds", one, "model"), "now"), (
            f"sum by (model) (rate(sconce_execute_duration_seconds_sum{{{one}}}[$__rate_interval] offset 1d))"
            f" / sum by (model) (rate(sconce_execute_duration_seconds_count{{{one}}}[$__rate_interval] offset 1d))", "a day ago"), unit="s"),
    ]),
    dashboard("capacity", "capacity", "What is used up first?", [JOB], [
        panel("Processor cores in use", (f"rate(process_cpu_seconds_total{{{ours}}}[$__rate_interval])", "{{instance}}")),
        panel("Memory of the process", (f"process_resident_memory_bytes{{{ours}}}", "{{instance}}"), unit="bytes"),
        panel("Device time that models ask for", (
            f"sum by (model) (rate(sconce_batches_total{{{ours}}}[$__rate_interval]) * sconce_cost_batch_seconds{{{ours}}}"
            f" + rate(sconce_rows_total{{{ours}}}[$__rate_interval]) * sconce_cost_row_seconds{{{ours}}}"
            f" + rate(sconce_tokens_total{{{ours}}}[$__rate_interval]) * sconce_cost_token_seconds{{{ours}}})", "{{model}}"),
            about="Seconds of a device's slot in a second, by the learned cost of batches: the sum is at most the slots there are."),
        panel("Requests that wait", (f"sum by (instance) (sconce_queue_depth{{{ours}}})", "{{instance}}"),
              about="The chart's autoscaler goes by this."),
        panel("Model memory", (f"sconce_device_memory_bytes{{{ours}}}", "{{instance}} {{device}}"),
              (f"sconce_device_memory_bytes_limit{{{ours}}}", "{{instance}} {{device}}: bound"), unit="bytes"),
        panel("Largest models", (f"topk(10, sum by (model) (sconce_model_memory_bytes{{{ours}}}))", "{{model}}"), unit="bytes"),
        panel("GPUs at work", (f"sconce_gpu_utilization_ratio{{{ours}}}", "{{instance}} {{index}} {{name}}"), unit="percentunit", max=1,
              about="Builds with CUDA alone."),
        panel("Memory of GPUs", (f"sconce_gpu_memory_used_bytes{{{ours}}}", "{{instance}} {{index}}: in use"),
              (f"sconce_gpu_memory_total_bytes{{{ours}}}", "{{instance}} {{index}}: all"), unit="bytes"),
        panel("Temperature of GPUs", (f"sconce_gpu_temperature_celsius{{{ours}}}", "{{instance}} {{index}}"), unit="celsius"),
        panel("Power of GPUs", (f"sconce_gpu_power_watts{{{ours}}}", "{{instance}} {{index}}"), unit="watt"),
        panel("How much of each bound is taken", (f"sconce:bound:ratio{{{ours}}}", "{{instance}} {{bound}}"), unit="percentunit", max=1,
              about="By the recording rules."),
        panel("Refused at a bound", (rate("sconce_rejected_requests_total", ours, "instance, reason"), "{{instance}} {{reason}}"), unit="reqps"),
        panel("Threads and tasks", (f"process_threads{{{ours}}}", "{{instance}}: threads"),
              (f"sconce_runtime_alive_tasks{{{ours}}}", "{{instance}}: tasks"),
              (f"sconce_runtime_global_queue_depth{{{ours}}}", "{{instance}}: tasks that wait for a thread")),
        panel("Spans", (rate("sconce_trace_spans_exported_total", ours, "instance"), "{{instance}}: exported"),
              (rate("sconce_trace_spans_dropped_total", ours, "instance"), "{{instance}}: lost"), unit="ops"),
    ]),
]


def main():
    for name, content in DASHBOARDS:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        Path(__file__).with_name("dashboards").joinpath(f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
