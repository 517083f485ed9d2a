"""Stage route: sorts a partition's survivors, perhaps with their images, by shard and row; lists its dropped rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.schema import SCHEMAS
from faceshards.files import replacing, write_parquet
from faceshards.reading import for_arrow, load_array
from faceshards.storage.location import Location, StoredPath
from pipelines.records import ROUTED_SCHEMA
from pipelines.stages.label_spaces import own_names
from pipelines.stages.origins import SPILL, Kept, Sources, spill
from pipelines.stages.sections import write_sections


def route(
    records: Location,
    decisions: Location,
    sid: int,
    ordinal: int,
    sources: list[str],
    sets: list[str] | None,
    reasons: Sequence[str],
    routed: Location,
    dropped: Location,
    carried: Sources | None = None,
    kept: Location | None = None,
) -> int:
    """Returns the rows of a partition after writing its survivors, ordered by shard and row, and its dropped rows.

    The images of the survivors are written before their rows, if they are carried along.

    Args:
        records: the partition's record table.
        decisions: folder of whole-set columns (reason, representative, distance, label, shard, row), and details.
        sid: of the partition's first row.
        ordinal: of its first record in its file.
        sources: names of the build's files.
        sets: the set of each file, if label_original is to name it, because labels are the set's own; else None.
        reasons: names of the codes in the decisions.
        routed: Arrow file to write, ROUTED_SCHEMA; in a bucket these rows in sections.
        dropped: Parquet file to write, SCHEMAS["dropped"].
        carried: where the images come from, to write those of the survivors beside `routed`; None leaves them there.
        kept: what the scan kept of them, to take them from instead; it is removed.

    Raises:
        SourceError: a source changed.
        BuildError: what was kept is damaged.
    """
    table = pq.read_table(for_arrow(records))
    n = len(table)
    column = {
        name: load_array(decisions / f"{name}.npy", sid, sid + n)
        for name in ("reason", "representative", "distance", "label", "shard", "row")
    }
    keys, ordinals = table["key"].to_pylist(), table["ordinal"].to_numpy()
    keys = [str(ordinal + int(at)) if key is None else key for key, at in zip(keys, ordinals, strict=True)]
    table = table.set_column(table.column_names.index("key"), "key", pa.array(keys, pa.string()))
    if sets is not None:
        original = own_names(sets, table["source"].to_numpy(), table["label_original"])
        table = table.set_column(table.column_names.index("label_original"), "label_original", original)
    table = table.append_column("sid", pa.array(np.arange(sid, sid + n)))
    stay = np.flatnonzero(column["reason"] == 0)
    stay = stay[np.lexsort((column["row"][stay], column["shard"][stay]))]
    out = table.drop_columns(["label"]).take(stay)
    for name in ("label", "shard", "row"):
        out = out.append_column(name, pa.array(column[name][stay]))
    out = out.select(ROUTED_SCHEMA.names).cast(ROUTED_SCHEMA).combine_chunks()
    if carried is not None:
        spill(out, carried if kept is None else Kept(kept, table, sid), routed.with_suffix(SPILL))
    if isinstance(routed, StoredPath):
        write_sections(out, routed)
    else:
        with replacing(routed) as temporary, pa.ipc.new_file(str(temporary), ROUTED_SCHEMA) as writer:
            writer.write_table(out)
    gone = np.flatnonzero(column["reason"])
    lost = _explained(table.take(gone), decisions / "details.parquet", sid, sid + n)
    names = np.array(sources, object)[lost["source"].to_numpy()]
    stands = column["representative"][gone]
    columns = {
        "sid": lost["sid"],
        "source": pa.array(names, pa.string()),
        "key": lost["key"],
        "label_original": lost["label_original"],
        "reason": pa.array(np.array(reasons, object)[column["reason"][gone]], pa.string()),
        "detail": lost["detail"],
        "representative": pa.array(stands, pa.int64(), mask=stands < 0),
        "distance": pa.array(column["distance"][gone], pa.int16(), mask=column["distance"][gone] < 0),
    }
    write_parquet(pa.table(columns, SCHEMAS["dropped"]), dropped)
    if kept is not None:
        kept.unlink(missing_ok=True)
    return n


def _explained(lost: pa.Table, details: Location, start: int, stop: int) -> pa.Table:
    """Returns dropped rows with what the decisions say of some of them, by sid, in the column `detail`.

    Args:
        lost: rows of a partition, ascending by sid.
        details: Parquet file of sid and detail; not there if an earlier release decided.
        start: the partition's first sid.
        stop: the end of its sids.
    """
    if not details.exists():
        return lost
    told = pq.read_table(for_arrow(details), filters=[("sid", ">=", start), ("sid", "<", stop)])
    text = np.array(lost["detail"].to_pylist(), object)
    text[np.searchsorted(lost["sid"].to_numpy(), told["sid"].to_numpy())] = told["detail"].to_pylist()
    return lost.set_column(lost.column_names.index("detail"), "detail", pa.array(text, pa.string()))
