"""Which timm networks serve as backbones, and what a branch costs: python -m benchmarks.backbones.

Networks are created on the device `meta`, so that nothing is downloaded and nothing is computed.
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import timm
import torch

from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing
from crosscoop.network.backbone import Backbone
from crosscoop.network.cost import count_macs, count_parameters
from crosscoop.network.deeplabv3plus import DeepLabV3Plus
from crosscoop.network.pyramid import is_plain

FOLDER = Path(__file__).parents[1] / "docs"
FILE, PAGE = FOLDER / "backbones.csv", FOLDER / "backbones.md"
BEGIN, END = "<!-- table: backbones -->", "<!-- end of table -->"

SIDE, CLASSES, OUTPUT_STRIDE = 512, 21, 16
COLUMNS = ("backbone", "works", "padded to", "low", "high", "parameters (M)", "multiply-adds (G)", "reason")
FAMILIES = """
bat_resnext26ts beit_base_patch16_224 beit_large_patch16_224 beitv2_base_patch16_224 botnet26t_256 caformer_s18
caformer_s36 cait_s24_224 coat_lite_small coatnet_0_rw_224 coatnext_nano_rw_224 convformer_s18 convformer_s36
convmixer_768_32 convnext_atto convnext_femto convnext_nano convnext_tiny convnext_small convnext_base convnext_large
convnextv2_atto convnextv2_nano convnextv2_tiny convnextv2_base convit_small crossvit_15_240 cs3darknet_m cs3darknet_x
cspdarknet53 cspresnet50 cspresnext50 darknet53 davit_tiny davit_base deit_small_patch16_224 deit3_small_patch16_224
deit3_base_patch16_224 densenet121 densenet169 densenet201 dla34 dla60 dla102 dm_nfnet_f0 dpn68 dpn92 eca_nfnet_l0
ecaresnet50d edgenext_small efficientformer_l1 efficientformerv2_s1 efficientnet_b0 efficientnet_b1 efficientnet_b2
efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_es efficientnet_lite0 efficientnetv2_rw_t efficientvit_b1
efficientvit_m2 efficientvit_l1 ese_vovnet19b_dw ese_vovnet39b eva02_tiny_patch14_224 eva02_small_patch14_224
eva02_base_patch14_224 fastvit_t8 fastvit_sa12 fbnetc_100 fbnetv3_b flexivit_small focalnet_tiny_srf focalnet_base_srf
gcresnet50t gcvit_tiny gernet_m gernet_l ghostnet_100 ghostnetv2_100 hardcorenas_a hgnet_small hgnetv2_b0 hgnetv2_b4
hiera_tiny_224 hiera_small_224 hrnet_w18 hrnet_w18_small_v2 hrnet_w32 hrnet_w48 inception_next_tiny
inception_resnet_v2 inception_v3 inception_v4 lcnet_100 legacy_xception levit_256 mambaout_tiny mambaout_small
maxvit_tiny_tf_512 maxvit_rmlp_pico_rw_256 mixer_s16_224 mixnet_m mixnet_l mnasnet_100 mobilenetv1_100 mobilenetv2_100
mobilenetv2_140 mobilenetv3_large_100 mobilenetv3_small_100 mobilenetv4_conv_small mobilenetv4_conv_medium
mobilenetv4_conv_large mobilenetv4_hybrid_medium mobileone_s0 mobilevit_s mobilevitv2_100 mvitv2_tiny nasnetalarge
nest_tiny nextvit_small nf_regnet_b1 nf_resnet50 nfnet_f0 pit_s_224 pnasnet5large poolformer_s12 poolformerv2_s24
pvt_v2_b0 pvt_v2_b2 regnetx_032 regnety_016 regnety_032 regnety_160 regnetz_d8 repghostnet_100 repvgg_b0 repvit_m1
res2net50_26w_4s res2net101_26w_4s resnest50d resnest101e resnet18 resnet26d resnet34 resnet50 resnet50c resnet50d
resnet101 resnet101c resnet101d resnet152 resnetaa50 resnetblur50 resnetrs50 resnetv2_50 resnetv2_50x1_bit
resnetv2_101 resnext50_32x4d resnext101_32x8d resnext101_64x4d rexnet_100 sebotnet33ts_256 seresnet50
seresnext50_32x4d selecsls42b semnasnet_100 sequencer2d_s skresnet34 spnasnet_100 swin_tiny_patch4_window7_224
swin_small_patch4_window7_224 swin_base_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
tf_efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_s tf_mobilenetv3_large_100 tiny_vit_21m_224 tinynet_a
tnt_s_patch16_224 tresnet_m twins_svt_small vgg16_bn vit_tiny_patch16_224 vit_small_patch16_224 vit_small_patch8_224
vit_base_patch16_224 vit_base_patch16_clip_224 vit_base_patch16_siglip_224 vit_base_patch32_224
vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_dinov2
vit_small_patch16_dinov3 vit_base_patch16_dinov3 vit_large_patch16_dinov3 vit_relpos_small_patch16_224
vit_srelpos_small_patch16_224 vitamin_small_224 volo_d1_224 vovnet39a wide_resnet50_2 xception41 xception65 xception71
xception65p xcit_tiny_12_p16_224
"""
NAMES = FAMILIES.split()
"""One or a few of each family of timm, in small and usual sizes."""


def row(name: str) -> dict[str, str]:
    """Return the table's row of a backbone: at output stride 16, or else with a depth of 4."""
    reason = ""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size and not is_plain(name)  # these are tried on the CPU
    for depth in (None, 4):
        try:
            with torch.device("cpu" if fixed else "meta"):
                backbone = Backbone(name, OUTPUT_STRIDE, depth)
                branch = DeepLabV3Plus(backbone, CLASSES).eval().to("meta")
        except CrosscoopError as error:
            reason = str(error) if depth is None or "cannot dilate" in reason else reason
            continue
        macs = count_macs(branch, torch.empty(1, 3, SIDE, SIDE, device="meta"))
        works = "as it is" if depth is None else "depth: 4"
        padded = str(backbone.multiple) if backbone.multiple > 1 else ""
        channels = str(backbone.low_channels), str(backbone.high_channels)
        costs = f"{count_parameters(branch) / 1e6:.1f}", f"{macs / 1e9:.1f}"
        return dict(zip(COLUMNS, (name, works, padded, *channels, *costs, ""), strict=True))
    return dict(zip(COLUMNS, (name, "no", *[""] * 5, " ".join(reason.split())), strict=True))


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the rows in Markdown."""
    lines = [" | ".join(COLUMNS), " | ".join(["---", "---", *["---:"] * 5, "---"])]
    for each in rows:
        reason = re.split(r"[;.] ", each["reason"])[0].removeprefix(f"Backbone {each['backbone']!r} ")
        lines.append(" | ".join(value or "-" for value in {**each, "reason": reason}.values()))
    return "\n".join(f"| {line} |" for line in lines)


def read() -> list[dict[str, str]]:
    """Return the rows of the file."""
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def rebuilt(page: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Return a page with the table and the counts of these rows."""
    numbers = Counter(each["works"] for each in rows)
    summary = (
        f"Of {len(rows)} networks of timm {timm.__version__}, {numbers['as it is']} work as they are, "
        f"{numbers['depth: 4']} with `depth: 4`, and {numbers['no']} are refused."
    )
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{summary}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write docs/backbones.csv and the table of docs/backbones.md."""
    warnings.simplefilter("ignore")
    rows = []
    for name in NAMES:
        rows.append(row(name))
        print(*rows[-1].values(), sep=", ", flush=True)
    with replacing(FILE) as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    PAGE.write_text(rebuilt(PAGE.read_text("utf-8"), rows), "utf-8")


if __name__ == "__main__":
    main()
