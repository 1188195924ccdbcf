// Renders portraits: reads one JSON object of dicebear options per line on stdin, and writes
// 16x16 RGB bytes per portrait to stdout. One pixel per cell: the style's grid is 16x16, so a
// picture of 128x128 is the same one with every pixel repeated eight times each way.

import { createInterface } from "node:readline";
import { once } from "node:events";
import { createAvatar } from "@dicebear/core";
import { pixelArt } from "@dicebear/collection";
import { Resvg } from "@resvg/resvg-js";

const GRID = 16;

// The style draws a beard through a luminance mask that is filled with the hair colour, which
// makes the beard of dark hair invisible. A mask filled with white shows every beard alike.
const BEARD_MASK = /(<mask id="beard[^>]*>)(.*?)(<\/mask>)/gs;

function render(options) {
  const svg = createAvatar(pixelArt, { ...options, seed: "portrait" })
    .toString()
    .replace(BEARD_MASK, (_, open, body, close) =>
      open + body.replace(/fill="#[0-9a-fA-F]+"/g, 'fill="#fff"') + close,
    );
  const { pixels } = new Resvg(svg, { fitTo: { mode: "width", value: GRID } }).render();
  const rgb = Buffer.alloc(GRID * GRID * 3);
  for (let i = 0; i < GRID * GRID; i++) {
    rgb.set(pixels.subarray(4 * i, 4 * i + 3), 3 * i);
  }
  return rgb;
}

for await (const line of createInterface({ input: process.stdin })) {
  if (line && !process.stdout.write(render(JSON.parse(line)))) {
    await once(process.stdout, "drain");
  }
}
