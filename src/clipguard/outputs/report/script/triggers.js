// A trigger is scale * x + shift, value by value. Both are pictures whose 0 and 255 stand for two numbers.
const triggers = {};
const loaded = uri => new Promise((done, failed) => {
  const image = new Image();
  image.onload = () => done(image);
  image.onerror = failed;
  image.src = uri;
});
const pixelsOf = (image, width, height) => {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
};
const triggerOf = async number => {
  const {scale, shift} = data.triggers[number];
  triggers[number] ??= {scale: await loaded(scale.picture), shift: await loaded(shift.picture)};
  return {ranges: {scale, shift}, ...triggers[number]};
};
const values = (trigger, name, width, height) => {
  const {low, high} = trigger.ranges[name], pixels = pixelsOf(trigger[name], width, height).data;
  return i => low + (high - low) * pixels[i] / 255;
};
const COVERED = 0.25;  // Below this factor too little of the picture is left to bring it back.
const changed = async (canvas, image, number, undo) => {
  await image.decode();
  const width = image.naturalWidth, height = image.naturalHeight;
  const trigger = await triggerOf(number), pixels = pixelsOf(image, width, height);
  const scale = values(trigger, "scale", width, height), shift = values(trigger, "shift", width, height);
  let covered = 0;
  for (let i = 0; i < pixels.data.length; i++) {
    if (i % 4 === 3) continue;
    const lost = undo && Math.abs(scale(i)) < COVERED;
    covered += lost;
    pixels.data[i] = lost ? 128 : undo ? (pixels.data[i] - shift(i)) / scale(i) : scale(i) * pixels.data[i] + shift(i);
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return covered / (3 * width * height);
};
