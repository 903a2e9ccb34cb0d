// Playing: a clock in seconds of the run, which is the sound's own where there is sound.

const FASTEST = "fastest";

/**
 * Calls `show(volume, seconds)` while it plays, `changed(playing)` when it starts or stops, and `silenced()` where the
 * browser refuses to play the sound.
 */
class Player {
  constructor(about, show, changed, silenced) {
    this.about = about;
    this.show = show;
    this.changed = changed;
    this.silenced = silenced;
    this.end = about.times[about.n_volumes - 1] + about.t_r;
    this.speed = 1;
    this.playing = false;
    this.seconds = about.times[about.start.volume];
    this.sound = null;
    this.muted = false;
    this.tick = this.tick.bind(this);
  }

  /** Take a sound that begins at `start` s of the run's clock. */
  setSound(blob, start, duration) {
    const audio = new Audio();
    audio.preload = "auto";
    this.url = URL.createObjectURL(blob);
    audio.src = this.url;
    audio.addEventListener("error", () => (this.sound = null));
    this.sound = { audio, start, duration };
  }

  /** The volume that is being acquired at a moment. */
  volumeAt(seconds) {
    const { times, t_r, n_volumes } = this.about;
    let k = Math.min(n_volumes - 1, Math.max(0, Math.floor((seconds - times[0]) / t_r + 1e-6)));
    while (k > 0 && times[k] > seconds + 1e-6) k--;
    while (k < n_volumes - 1 && times[k + 1] <= seconds + 1e-6) k++;
    return k;
  }

  get heard() {
    return this.sound !== null && !this.sound.audio.paused && !this.sound.audio.ended && !this.sound.audio.seeking && this.sound.audio.readyState >= 2;
  }

  /** The moment that is heard now, in s of the run. */
  get soundSeconds() {
    return this.sound.start + this.sound.audio.currentTime;
  }

  play() {
    if (this.seconds >= this.about.times[this.about.n_volumes - 1]) this.seconds = Math.max(0, this.about.times[0]);
    this.playing = true;
    this.last = performance.now();
    this.changed(true);
    this.startSound();
    this.frame = requestAnimationFrame(this.tick);
    if (this.speed === FASTEST) this.next();
  }

  pause() {
    this.playing = false;
    cancelAnimationFrame(this.frame);
    if (this.sound) this.sound.audio.pause();
    this.changed(false);
  }

  seek(seconds) {
    this.seconds = seconds;
    this.last = performance.now();
    if (this.sound) this.sound.audio.pause();
    if (this.playing) this.startSound();
  }

  setSpeed(speed) {
    this.speed = speed;
    this.seek(this.seconds);
    if (this.playing && speed === FASTEST) this.next();
  }

  setMuted(muted) {
    this.muted = muted;
    this.seek(this.seconds);
  }

  /** Let the sound join in where the run's clock lies within it. */
  startSound() {
    if (!this.sound || this.muted || typeof this.speed !== "number" || this.speed > 4) return;
    const { audio, start, duration } = this.sound, at = this.seconds - start;
    if (at < 0 || at >= duration - 0.05) return;
    audio.playbackRate = this.speed;
    audio.currentTime = at;
    audio.play().catch((error) => {
      if (error.name === "AbortError") return; // paused or sought before it had begun
      this.setMuted(true);
      this.silenced();
    });
  }

  tick(now) {
    if (!this.playing) return;
    if (this.heard) this.seconds = this.soundSeconds;
    else if (this.sound && !this.muted && !this.sound.audio.paused) this.last = now; // waits for the sound to be found
    else if (typeof this.speed === "number") {
      this.seconds += ((now - this.last) / 1000) * this.speed;
      if (this.sound && this.sound.audio.paused) this.startSound();
    }
    this.last = now;
    if (this.seconds >= this.end) {
      this.seconds = this.about.times[this.about.n_volumes - 1];
      this.show(this.about.n_volumes - 1, this.seconds);
      return this.pause();
    }
    if (this.speed !== FASTEST) this.show(this.volumeAt(this.seconds), this.seconds);
    this.frame = requestAnimationFrame(this.tick);
  }

  /** As fast as it goes: one volume after the other is asked for when the one before has been painted. */
  next() {
    if (!this.playing || this.speed !== FASTEST) return;
    const volume = this.volumeAt(this.seconds) + 1;
    if (volume >= this.about.n_volumes) return this.pause();
    this.seconds = this.about.times[volume];
    this.show(volume, this.seconds);
  }

  close() {
    this.pause();
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
