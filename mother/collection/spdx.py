"""SPDX's identifiers of the licences that model cards declare (https://spdx.org/licenses).

The Hub's identifiers (https://huggingface.co/docs/hub/repositories-licenses) are SPDX's in lower case, but for a few.
Names of a family of texts, such as "gpl" or "bsd", have none. "GPL-3.0" and its like are identifiers that SPDX has
deprecated, since they do not say whether a later version may be taken; neither does the card.
"""

from mother.collection.licence_table import LICENCES

SPDX = """
0BSD AFL-3.0 AGPL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-2.0 BlueOak-1.0.0 BSD-2-Clause
BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 BUSL-1.1 C-UDA-1.0 CC0-1.0 CC-BY-2.0 CC-BY-2.5
CC-BY-3.0 CC-BY-4.0 CC-BY-SA-2.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-ND-3.0
CC-BY-ND-4.0 CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CDLA-Permissive-1.0
CDLA-Permissive-2.0 CDLA-Sharing-1.0 CECILL-2.1 ECL-2.0 EPL-1.0 EPL-2.0 etalab-2.0 EUPL-1.1 EUPL-1.2 GPL-2.0
GPL-2.0-only GPL-2.0-or-later GPL-3.0 GPL-3.0-only GPL-3.0-or-later ISC LGPL-2.1 LGPL-2.1-only LGPL-2.1-or-later
LGPL-3.0 LGPL-3.0-only LGPL-3.0-or-later LGPLLR LPPL-1.3c MIT MIT-0 MPL-2.0 MS-PL MulanPSL-2.0 NCSA ODbL-1.0 ODC-By-1.0
OFL-1.1 OpenMDW-1.0 OSL-3.0 PDDL-1.0 PostgreSQL Unlicense Vim WTFPL Zlib
""".split()

# What the Hub calls otherwise.
OTHERS = {"c-uda": "C-UDA-1.0", "lgpl-lr": "LGPLLR", "odbl": "ODbL-1.0", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0"}
IDS = {name.lower(): name for name in SPDX} | OTHERS


def spdx_id(declared: str) -> str | None:
    """SPDX's identifier of a licence as a card declares it; None where it is not known here to have one."""
    return IDS.get(declared.lower())


def licence_url(declared: str) -> str | None:
    """The address that stands for a licence: SPDX's, else that of its text; None where neither is known here."""
    known = spdx_id(declared)
    if known is not None:
        return f"https://spdx.org/licenses/{known}"
    return LICENCES[declared].source if declared in LICENCES else None


def licence_names(declared: str) -> list[str]:
    """The licences that a card declares, apart where it lists several ("mit and gemma") and all of them are known."""
    parts = declared.split(" and ")
    return parts if all(one.lower() in IDS or one in LICENCES for one in parts) else [declared]
