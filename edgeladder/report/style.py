"""The report's style sheet: system fonts, two palettes, one column on a phone."""

STYLE = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1d2126;--muted:#66707a;--line:#e2e4e6;--accent:#1f6f8b;
--second:#b9c6cc;--bad:#c2542d;--on:#fff}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1c2024;--ink:#e6e8ea;
--muted:#98a2ab;--line:#30363c;--accent:#5ab4d2;--second:#4b5761;--bad:#e58a63;--on:#0d1114}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer{max-width:820px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:0 0 10px}
header p,footer,.none,.legend{color:var(--muted)}
header p{margin:2px 0 18px}
footer{padding-bottom:32px;font-size:.85rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;
margin:0 0 14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:14px}
.tile b{display:block;font-size:1.25rem;line-height:1.25;overflow-wrap:anywhere}
.tile span{color:var(--muted);font-size:.85rem}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--ink);font-size:12px;font-family:inherit}
svg .tick{fill:var(--muted);font-size:11px}
svg .cell,svg .on{font-size:11px}
svg .on{fill:var(--on)}
svg .grid{stroke:var(--line);fill:none}
svg .line{stroke:var(--accent);stroke-width:2;fill:none;stroke-linejoin:round}
svg .faint{stroke:var(--second);stroke-width:1;fill:none}
.bars{--name:11rem;--gap:10px;--end:4.8rem;position:relative;margin:0 0 10px}
.bars.marked{padding-top:1.4rem}
.bars .row{display:grid;grid-template-columns:var(--name) 1fr;column-gap:var(--gap);
align-items:center;margin-bottom:9px}
.bars .name{text-align:right;overflow-wrap:anywhere;font-size:.85rem;line-height:1.2}
.bars .bar{display:flex;align-items:center;gap:6px;height:14px;padding-right:var(--end)}
.bars i{flex:none;height:11px;min-width:1px;border-radius:2px}
.bars .bar span,.bars .mark span{font-size:12px;line-height:1;white-space:nowrap;
color:var(--muted)}
.bars .bar span{position:relative;z-index:1;background:var(--card);padding:0 2px}
.bars .mark{position:absolute;top:1.2rem;bottom:0;border-left:2px dashed var(--bad);
left:calc(var(--name) + var(--gap) + (100% - var(--name) - var(--gap) - var(--end))*var(--at))}
.bars .mark span{position:absolute;bottom:100%;right:0;padding-bottom:3px;color:var(--bad)}
.bars .mark .after{right:auto;left:0}
i.planned{background:var(--second)}
i.measured{background:var(--accent)}
svg .planned{fill:var(--second)}
svg .measured,svg .hit{fill:var(--accent)}
svg .miss{fill:var(--bad)}
svg .frame{fill:none;stroke:var(--line)}
svg .ideal{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:5 3;fill:none}
svg .budget{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 3;fill:none}
svg .budget-text{fill:var(--bad)}
.legend{font-size:.85rem}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 5px 0 8px}
.scroll{overflow-x:auto;background:linear-gradient(90deg,var(--card) 40%,transparent) left/22px
100% no-repeat local,linear-gradient(270deg,var(--card) 40%,transparent) right/22px 100% no-repeat
local,linear-gradient(90deg,var(--line),transparent) left/9px 100% no-repeat scroll,
linear-gradient(270deg,var(--line),transparent) right/9px 100% no-repeat scroll}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);
vertical-align:top;font-variant-numeric:tabular-nums}
td:last-child{overflow-wrap:anywhere;padding-right:0}
td:not(:first-child):not(:last-child){white-space:nowrap}
section>p:last-child{margin-bottom:0}
th{color:var(--muted);font-weight:500}
tr:last-child td{border-bottom:0}
summary{cursor:pointer;color:var(--muted);margin-top:10px}
pre{overflow-x:auto;font:13px/1.45 ui-monospace,"DejaVu Sans Mono",monospace;margin:10px 0 0}
h3{font-size:.95rem;margin:14px 0 0}
h3+p{margin:0 0 8px;color:var(--muted);font-size:.85rem}
.gallery{display:grid;grid-template-columns:repeat(4,1fr);gap:12px}
figure{margin:0;font-size:.8rem;line-height:1.35;overflow-wrap:anywhere}
figure img,.lost{display:block;width:100%;aspect-ratio:1;object-fit:cover;border-radius:8px;
background:var(--line);margin-bottom:4px}
.lost{display:grid;place-items:center;color:var(--muted)}
dl{margin:0}
dt{color:var(--muted);font-size:.85rem}
dd{margin:0 0 10px}
dd pre{margin:2px 0 0;padding:8px 10px;background:var(--paper);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere}
@media (max-width:560px){body{font-size:15px}header,main,footer{padding:0 10px}
section{padding:12px}.gallery{grid-template-columns:repeat(2,1fr)}
.bars{--name:0px;--gap:0px}.bars .row{grid-template-columns:1fr}.bars .name{text-align:left}
svg text,svg .tick{font-size:24px}
svg.wide{min-width:560px}svg.wide text,svg.wide .tick,svg .cell,svg .on{font-size:15px}}
@media print{body{background:#fff;font-size:13px}section{padding:10px}svg{max-width:540px}
i,svg rect,svg circle{print-color-adjust:exact;
-webkit-print-color-adjust:exact}section,figure{break-inside:avoid}
.gallery{grid-template-columns:repeat(8,1fr)}}
"""
